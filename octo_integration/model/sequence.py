"""The decoder's sequence: its order, the time of every token, and who attends to whom.

The order is: image tokens (timestep by timestep, camera by camera), task (goal image, instruction), one proprio token
per timestep, readouts. What is missing keeps its place and is attended to by nobody.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from octo_integration.model.attention import blockwise_mask
from octo_integration.model.config import AttentionKind, VLAConfig

TASK_TIME = -1

# Times that `blockwise_mask` turns into the mask of a kind, from those of Octo's.
KINDS: dict[AttentionKind, Any] = {
    "blockwise": lambda times: times,
    "causal": lambda times: np.arange(len(times)),
    "full": np.zeros_like,
}


def token_times(window: int, patches: int, task: int, chunk: int) -> np.ndarray:
    """The time of every token in Octo's attention (arXiv 2405.12213): int[N], in their order.

    Task tokens see the task; observations see the task and observations up to their own timestep; readouts see all,
    and only readouts see them.

    Args:
      patches: image tokens per timestep, of all cameras.
      task: tokens of goal image and instruction.
      chunk: readouts.
    """
    steps = np.arange(window)
    return np.concatenate([np.repeat(steps, patches), np.full(task, TASK_TIME), steps, np.full(chunk, window)])


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
    parts.append(jnp.ones((rows, config.chunk), bool))
    return jnp.concatenate(parts, axis=1)


def instruction_mask(task: Mapping[str, Any]) -> jax.Array:
    """bool[B, L]: the words of the instruction, none where it is missing."""
    mask, given = jnp.asarray(task["mask"]), task.get("pad_mask_dict", {})
    return mask & given["instruction"][:, None] if "instruction" in given else mask


def attention_mask(config: VLAConfig, valid: jax.Array, window: int, patches: int) -> jax.Array:
    """Who attends to whom: bool[B, N (query), N (key)] of `config.attention` for bool[B, N] of `valid_tokens`."""
    shown = patches * len(config.cameras)
    task = valid.shape[1] - window * shown - window - config.chunk
    times = KINDS[config.attention](token_times(window, shown, task, config.chunk))
    return blockwise_mask(jnp.asarray(times), valid)


def token_positions(valid: jax.Array) -> jax.Array:
    """bool[B, N] -> int32[B, N] positions that count valid tokens only: padding moves nothing."""
    return jnp.cumsum(valid, axis=1, dtype=jnp.int32) - 1
