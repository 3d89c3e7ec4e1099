"""The whole model: images, task and robot state in, a chunk of actions out.

All towers see every image; the bridge makes one decoder token of each patch. The decoder takes them with the task, the
robot's state and the readouts as one sequence (`model/sequence.py`); the action head reads the readouts.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from octo_integration.model.bridge import Bridge
from octo_integration.model.config import StemConfig, TowerConfig, VLAConfig
from octo_integration.model.fresh import ImageSource, ProprioProjector, Readout
from octo_integration.model.heads.common import Metrics
from octo_integration.model.language import Decoder
from octo_integration.model.partition import by_example
from octo_integration.model.sequence import (
    attention_mask,
    instruction_mask,
    readout_steps,
    sequence_positions,
    valid_tokens,
)
from octo_integration.model.stem import Stem
from octo_integration.model.t5 import T5
from octo_integration.model.vit import Tower

Arrays = Mapping[str, Any]

MODULES: dict[type, Any] = {TowerConfig: Tower, StemConfig: Stem}


class VLA(nn.Module):
    """A vision-language-action model; top-level parameters are `config.PRETRAINED` and `FRESH`.

    Observation and task are, for B samples of T timesteps, the last of which is the present:
      {"image_<camera>": uint8[B, T, H, W, 3] of every camera of the configuration, "proprio": f32[B, T, P] normalised,
       "timestep_pad_mask": bool[B, T], "pad_mask_dict": {"image_<camera>": bool[B, T], "proprio": bool[B, T]}}
      {"tokens": int32[B, L], "mask": bool[B, L], with a goal "image_primary": uint8[B, H, W, 3],
       "pad_mask_dict": {"instruction": bool[B], "image_primary": bool[B]}}
    True marks what is real. Whatever a pad_mask_dict does not name is there.
    """

    config: VLAConfig

    def setup(self) -> None:
        """Makes the submodules."""
        config = self.config
        width, dtype, build = config.language.width, config.dtype, config.build
        for name, tower in config.towers.items():
            setattr(self, name, MODULES[type(tower)](tower, build))
        if config.t5 is not None:
            self.t5 = T5(config.t5, build)
            self.task_projector = nn.Dense(width, dtype=dtype)
        self.bridge = Bridge(width, build)
        self.language = Decoder(config.language, build)
        self.readout = Readout(config.chunk, width, dtype)
        self.action_head = config.head.make(config.action_dim, dtype)
        self.proprio_projector = ProprioProjector(width, dtype)
        if self._sources > 1:
            self.image_source = ImageSource(self._sources, width, dtype)

    def __call__(self, observation: Arrays, task: Arrays, key: jax.Array | None = None) -> jax.Array:
        """Predicts the actions of the last timestep and after.

        Args:
          key: for heads that draw; default: jax.random.key(0).

        Returns:
          f32[B, chunk, A], normalised.

        Raises:
          ValueError: an input is missing, or of another size than the configuration's.
        """
        key = jax.random.key(0) if key is None else key
        return self.action_head.predict(self.read(observation, task)[:, -1], key)

    def loss(self, batch: Arrays, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """The action head's loss f32[] and what it logs, over the chunks of all timesteps that have readouts.

        Args:
          batch: {"observation", "task", "action": f32[B, T - 1 + chunk, A] normalised, from the first timestep on,
            "action_pad_mask": bool[B, T - 1 + chunk, A]}.

        Raises:
          ValueError: as `__call__`; actions or mask of another shape.
        """
        action, mask = batch["action"], batch["action_pad_mask"]
        real = batch["observation"]["timestep_pad_mask"]
        chunk, window = self.config.chunk, real.shape[1]
        wanted = (window - 1 + chunk, self.config.action_dim)
        for name, found in {"action": action.shape, "action_pad_mask": mask.shape}.items():
            if found[1:] != wanted:
                raise ValueError(
                    f"model: {name} has shape {found}, the configuration says [B, window - 1 + chunk, "
                    f"action_dim] with {wanted}; change either."
                )
        x = self.read(batch["observation"], batch["task"])
        steps = np.asarray(readout_steps(self.config, window))
        ahead = steps[:, None] + np.arange(chunk)
        mask = mask[:, ahead] & real[:, steps, None, None]
        # One row per timestep, those of a sample side by side.
        x, action, mask = (by_example(value.reshape(-1, *value.shape[2:])) for value in (x, action[:, ahead], mask))
        return self.action_head.loss(x, action, mask, key)

    def read(self, observation: Arrays, task: Arrays) -> jax.Array:
        """[B, steps, chunk, width], what the decoder makes of the readouts of every timestep that has them."""
        steps, chunk = len(readout_steps(self.config, observation["timestep_pad_mask"].shape[1])), self.config.chunk
        x = by_example(self.decode(observation, task)[:, -steps * chunk :])
        return x.reshape(len(x), steps, chunk, -1)

    def decode(self, observation: Arrays, task: Arrays) -> jax.Array:
        """[B, N, width], what the decoder makes of every token, in the order of `model/sequence.py`."""
        config = self.config
        _check(observation, task, config)
        rows, window = observation["timestep_pad_mask"].shape
        images, patches = self._images(observation, task)
        readouts = jnp.tile(self.readout(), (len(readout_steps(config, window)), 1))
        x = jnp.concatenate(
            [
                images,
                self._instruction(task),
                self.proprio_projector(observation["proprio"]),
                jnp.broadcast_to(readouts, (rows, *readouts.shape)),
            ],
            axis=1,
        )
        valid = valid_tokens(config, observation, task, patches)
        mask = attention_mask(config, valid, window, patches)
        return self.language(by_example(x), sequence_positions(config, valid, window), mask)

    def see(self, images: jax.Array) -> jax.Array:
        """[B, H, W, 3], pixels 0..255 -> [B, patches, width] decoder tokens."""
        return self.bridge(*(getattr(self, name)(images) for name in self.config.towers))

    def _images(self, observation: Arrays, task: Arrays) -> tuple[jax.Array, int]:
        """[B, tokens, width] of all timesteps, cameras and the goal, and the number of tokens per image."""
        config = self.config
        cameras = jnp.stack([observation[f"image_{camera}"] for camera in config.cameras], axis=2)
        rows, window, count, *image = cameras.shape
        frames = cameras.reshape(rows, window * count, *image)
        source = np.tile(np.arange(count), window)
        if config.goal:
            # Beside its sample's other images, so that a batch split over devices stays where it is.
            frames = jnp.concatenate([frames, task["image_primary"][:, None]], axis=1)
            source = np.append(source, count)
        seen = self.see(frames.reshape(-1, *image))
        patches, width = seen.shape[1:]
        tokens = seen.reshape(rows, -1, patches, width)
        if self._sources > 1:
            tokens = tokens + self.image_source()[source][:, None]
        return tokens.reshape(rows, -1, width), patches

    @property
    def _sources(self) -> int:
        """Sources of images: the cameras and the goal."""
        return len(self.config.cameras) + self.config.goal

    def _instruction(self, task: Arrays) -> jax.Array:
        """[B, L, width]."""
        if self.config.t5 is None:
            return self.language.words(task["tokens"])
        return self.task_projector(self.t5(task["tokens"], instruction_mask(task)))


def _check(observation: Arrays, task: Arrays, config: VLAConfig) -> None:
    image = (config.image_size, config.image_size, 3)
    wanted = {f"image_{camera}": image for camera in config.cameras} | {"proprio": (config.proprio_dim,)}
    goal = {"image_primary": image} if config.goal else {}
    for part, values, outer, shapes in (("observation", observation, "B, T", wanted), ("task", task, "B", goal)):
        for name, shape in shapes.items():
            if name not in values:
                raise ValueError(
                    f"model: {part}/{name} is missing; give it, or zeros and False in {part}/pad_mask_dict/{name}."
                )
            found = values[name].shape[len(outer.split()) :]
            if found != shape:
                raise ValueError(
                    f"model: {part}/{name} has shape [{outer}, {', '.join(map(str, found))}], the configuration says "
                    f"{shape}; change either."
                )
