"""The named models: their configuration, the shapes of their parameters, and a random start."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from octo_integration.model import heads
from octo_integration.model.config import VLAConfig
from octo_integration.model.sizes import CONFIGS
from octo_integration.model.vla import VLA

Tree = Any


def model_config(name: str, head: heads.HeadKind | None = None) -> VLAConfig:
    """The configuration of a name, with its own action head or another one.

    Raises:
      ValueError: no such model or head; names those that there are.
    """
    if name not in CONFIGS:
        raise ValueError(f"there is no model {name!r}; there are: {', '.join(sorted(CONFIGS))}.")
    config = CONFIGS[name]
    return config if head is None else dataclasses.replace(config, head=heads.other(head, config.head))


def model_shapes(name: str, head: heads.HeadKind | None = None) -> Tree:
    """The parameters of a `model_config` as `jax.ShapeDtypeStruct`s."""
    return shapes_of(model_config(name, head))


def shapes_of(config: VLAConfig) -> Tree:
    """The parameters of a model as `jax.ShapeDtypeStruct`s."""
    return jax.eval_shape(functools.partial(random_params, VLA(config), 1), jax.random.key(0))


def random_params(model: VLA, window: int, key: jax.Array) -> Tree:
    """Those of a key.

    Args:
      window: timesteps of an observation.
    """
    vla = model.config
    image = (vla.image_size, vla.image_size, 3)
    length = vla.instruction_length
    observation = {
        **{f"image_{camera}": jnp.zeros((1, window, *image), jnp.uint8) for camera in vla.cameras},
        "proprio": jnp.zeros((1, window, vla.proprio_dim), jnp.float32),
        "timestep_pad_mask": jnp.ones((1, window), bool),
    }
    task = {
        "tokens": jnp.zeros((1, length), jnp.int32),
        "mask": jnp.ones((1, length), bool),
        "image_primary": jnp.zeros((1, *image), jnp.uint8),
    }
    return model.init(key, observation, task)["params"]
