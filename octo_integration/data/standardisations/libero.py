"""LIBERO as OpenVLA re-recorded it (modified_libero_rlds)."""

from typing import Any

import numpy as np

from octo_integration.data.standardize import ALL, Fields, Span, Standardisation
from octo_integration.data.tf import tf


def libero(steps: Fields) -> tuple[Any, Any, slice]:
    """Its gripper goes from -1 (open) to 1 (closed), and becomes 0 (closed) or 1 (open).

    Proprio is all of the state: pose (6), both fingers.
    """
    action = steps["action"]
    gripper = 1.0 - tf.clip_by_value(action[:, 6:], 0.0, 1.0)
    return steps["observation/state"], tf.concat([action[:, :6], gripper], axis=1), ALL


STANDARDISATION = Standardisation(
    images={"primary": "observation/image", "wrist": "observation/wrist_image"},
    vectors={"observation/state": 8, "action": 7},
    instruction="language_instruction",
    build=libero,
    spans=(Span("action", slice(0, 6), -1, 1), Span("action", slice(6, 7), -1, 1, signed=True)),
    own=lambda action: np.concatenate([action[..., :6], 1 - 2 * action[..., 6:]], axis=-1),
)
