"""The shapes of a batch of training samples."""

import functools
from typing import Any

import jax
import numpy as np

from octo_integration.model.sizes import CONFIGS
from octo_integration.state import sharding


def abstract_batch(name: str, size: int, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """The device form of a batch of `size` samples as shapes on the mesh."""
    vla = CONFIGS[name]
    place = functools.partial(jax.ShapeDtypeStruct, sharding=sharding.batch_sharding(mesh))
    side, length = vla.image_size, vla.instruction_length
    return {
        "observation": {
            "image_primary": place((size, 1, side, side, 3), np.uint8),
            "proprio": place((size, 1, vla.proprio_dim), np.float32),
            "timestep_pad_mask": place((size, 1), bool),
        },
        "task": {"tokens": place((size, length), np.int32), "mask": place((size, length), bool)},
        "action": place((size, vla.chunk, vla.action_dim), np.float32),
        "action_pad_mask": place((size, vla.chunk, vla.action_dim), bool),
    }
