"""The decoder's sequence: its order, the time of every token, and who attends to whom.

The order is: image tokens (timestep by timestep, camera by camera), task (goal image, instruction), one proprio token
per timestep, readouts (timestep by timestep). What is missing keeps its place and is attended to by nobody.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from octo_integration.model.config import AttentionKind, VLAConfig

TASK_TIME = -1
NO_READOUT = -1


def _blockwise(times: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Octo's (arXiv 2405.12213): task tokens see the task; observations see the task and observations up to their own
    timestep; readouts see what an observation of their timestep would, and each other, and nothing else sees them.
    """
    hidden = (owners != NO_READOUT) & (owners != owners[:, None])
    return (times <= times[:, None]) & ~hidden


# Who may see whom, bool[N (query), N (key)], from int[N] the time of every token and int[N] whose readout it is.
KINDS: dict[AttentionKind, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "blockwise": _blockwise,
    "causal": lambda times, _: np.tri(len(times), dtype=bool),
    "full": lambda times, _: np.ones((len(times), len(times)), bool),
}


def readout_steps(config: VLAConfig, window: int) -> range:
    """The timesteps that have readouts: all of them; without Octo's mask, which alone hides the future, the last."""
    return range(window) if config.attention == "blockwise" else range(window - 1, window)


def tokens_in_time(window: int, patches: int, task: int, chunk: int, steps: range) -> tuple[np.ndarray, np.ndarray]:
    """(the time of every token, the timestep whose readout it is or NO_READOUT): int[N] each, in their order.

    Args:
      patches: image tokens per timestep, of all cameras.
      task: tokens of goal image and instruction.
      chunk: readouts per timestep.
      steps: the timesteps that have readouts.
    """
    observed, read = np.arange(window), np.repeat(steps, chunk)
    seen = [np.repeat(observed, patches), np.full(task, TASK_TIME), observed]
    times = np.concatenate([*seen, read])
    return times, np.concatenate([np.full(len(times) - len(read), NO_READOUT), read])


def valid_tokens(config: VLAConfig, observation: Mapping[str, Any], task: Mapping[str, Any], patches: int) -> jax.Array:
    """What is there: bool[B, N], False where timestep, camera, proprio, goal or instruction are missing, or padding.

    Args:
      observation, task: of `VLA`.
      patches: tokens per image.
    """
    real = jnp.asarray(observation["timestep_pad_mask"])
    seen, given = (part.get("pad_mask_dict", {}) for part in (observation, task))
    rows = len(real)
    images = jnp.stack([real & seen.get(f"image_{camera}", True) for camera in config.cameras], axis=2)
    parts = [jnp.repeat(images.reshape(rows, -1), patches, axis=1)]
    if config.goal:
        goal = jnp.asarray(given.get("image_primary", np.ones(rows, bool)))
        parts.append(jnp.repeat(goal[:, None], patches, axis=1))
    parts.append(instruction_mask(task))
    parts.append(real & seen.get("proprio", True))
    parts.append(jnp.ones((rows, len(readout_steps(config, real.shape[1])) * config.chunk), bool))
    return jnp.concatenate(parts, axis=1)


def instruction_mask(task: Mapping[str, Any]) -> jax.Array:
    """bool[B, L]: the words of the instruction, none where it is missing."""
    mask, given = jnp.asarray(task["mask"]), task.get("pad_mask_dict", {})
    return mask & given["instruction"][:, None] if "instruction" in given else mask


def attention_mask(config: VLAConfig, valid: jax.Array, window: int, patches: int) -> jax.Array:
    """Who attends to whom: bool[B, N (query), N (key)] of `config.attention` for bool[B, N] of `valid_tokens`."""
    shown, steps = patches * len(config.cameras), readout_steps(config, window)
    task = valid.shape[1] - window * shown - window - len(steps) * config.chunk
    times, owners = tokens_in_time(window, shown, task, config.chunk, steps)
    return jnp.asarray(KINDS[config.attention](times, owners)) & valid[:, None, :]


def token_positions(valid: jax.Array) -> jax.Array:
    """bool[B, N] -> int32[B, N] positions that count valid tokens only: padding moves nothing."""
    return jnp.cumsum(valid, axis=1, dtype=jnp.int32) - 1


def sequence_positions(config: VLAConfig, valid: jax.Array, window: int) -> jax.Array:
    """`token_positions` of bool[B, N] of `valid_tokens`, but the readouts of a timestep follow its proprio token.

    So a readout stands where it would if there were no other timestep's.
    """
    steps = readout_steps(config, window)
    before = token_positions(valid[:, : valid.shape[1] - len(steps) * config.chunk])
    own = before[:, -window:][:, steps.start :, None] + 1 + jnp.arange(config.chunk)
    return jnp.concatenate([before, own.reshape(len(own), -1)], axis=1)
