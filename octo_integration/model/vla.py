"""The whole model: images, instruction and robot state in, a chunk of actions out.

Both towers see every image; the bridge makes one decoder token of each patch. The decoder's
sequence is, in this order: image tokens (timestep by timestep), instruction, one proprio token per
timestep, one readout per step of the action chunk. Who attends to whom is `token_times` and
`blockwise_mask`: instruction tokens to the instruction, observation tokens (image and proprio) to
the instruction and to observations up to their own timestep, readouts to everything.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from octo_integration.model.attention import blockwise_mask
from octo_integration.model.bridge import Bridge
from octo_integration.model.config import VLAConfig
from octo_integration.model.heads import L1ActionHead, ProprioProjector, Readout
from octo_integration.model.language import Decoder
from octo_integration.model.partition import by_example
from octo_integration.model.stem import Stem
from octo_integration.model.vit import Tower

Arrays = Mapping[str, jax.Array]

INSTRUCTION_TIME = -1


def token_times(window: int, patches: int, instruction: int, chunk: int) -> np.ndarray:
    """The time of every decoder token, for `blockwise_mask`: int[N], in their order."""
    steps = np.arange(window)
    return np.concatenate(
        [
            np.repeat(steps, patches),
            np.full(instruction, INSTRUCTION_TIME),
            steps,
            np.full(chunk, window),
        ]
    )


def token_positions(valid: jax.Array) -> jax.Array:
    """bool[B, N] -> int32[B, N] positions that count valid tokens only: padding moves nothing."""
    return jnp.cumsum(valid, axis=1, dtype=jnp.int32) - 1


class VLA(nn.Module):
    """A vision-language-action model; top-level parameters are `config.PRETRAINED` and `FRESH`."""

    config: VLAConfig

    def setup(self) -> None:
        """Makes the submodules."""
        config = self.config
        width, dtype = config.language.width, config.dtype
        for name, tower in config.towers.items():
            setattr(self, name, (Stem if name == "stem" else Tower)(tower, config.build))
        self.bridge = Bridge(width, config.build)
        self.language = Decoder(config.language, config.build)
        self.readout = Readout(config.chunk, width, dtype)
        self.action_head = L1ActionHead(config.action_dim, config.head.hidden, dtype)
        self.proprio_projector = ProprioProjector(width, dtype)

    def __call__(self, observation: Arrays, task: Arrays, train: bool = False) -> jax.Array:
        """Predicts the next actions.

        Args:
          observation: {"image_primary": uint8[B, T, H, W, 3], "proprio": f32[B, T, P] normalised,
            "timestep_pad_mask": bool[B, T], True = real}; the last timestep is the present.
          task: {"tokens": int32[B, L], "mask": bool[B, L], True = not padding}.
          train: part of the contract with the training step; no layer behaves differently.

        Returns:
          f32[B, chunk, A], normalised.

        Raises:
          ValueError: images or proprio of another size than the configuration's.
        """
        _check(observation, self.config)
        images, proprio = observation["image_primary"], observation["proprio"]
        real = observation["timestep_pad_mask"]
        batch, window = real.shape
        patches = self.see(images.reshape(-1, *images.shape[2:]))
        count, width = patches.shape[1:]
        readouts = self.readout()
        x = jnp.concatenate(
            [
                patches.reshape(batch, window * count, width),
                self.language.words(task["tokens"]),
                self.proprio_projector(proprio),
                jnp.broadcast_to(readouts, (batch, *readouts.shape)),
            ],
            axis=1,
        )
        chunk = len(readouts)
        always = jnp.ones((batch, chunk), bool)
        valid = jnp.concatenate([jnp.repeat(real, count, 1), task["mask"], real, always], axis=1)
        times = token_times(window, count, task["tokens"].shape[1], chunk)
        mask = blockwise_mask(jnp.asarray(times), valid)
        x = self.language(by_example(x), token_positions(valid), mask)
        return self.action_head(x[:, -chunk:])

    def see(self, images: jax.Array) -> jax.Array:
        """[B, H, W, 3], pixels 0..255 -> [B, patches, width] decoder tokens."""
        return self.bridge(*(getattr(self, name)(images) for name in self.config.towers))


def _check(observation: Arrays, config: VLAConfig) -> None:
    size = config.image_size
    for name, wanted in {
        "image_primary": (size, size, 3),
        "proprio": (config.proprio_dim,),
    }.items():
        found = observation[name].shape[2:]
        if found != wanted:
            raise ValueError(
                f"model: observation/{name} has shape [B, T, *{found}], the configuration says {wanted}; change either."
            )
