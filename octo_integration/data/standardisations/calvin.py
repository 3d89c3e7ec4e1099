"""CALVIN (calvin_abc_rlds), relative actions."""

from typing import Any

import numpy as np

from octo_integration.data.standardize import ALL, Fields, Span, Standardisation
from octo_integration.data.tf import tf


def calvin(steps: Fields) -> tuple[Any, Any, slice]:
    """Its gripper is -1 (closed) or 1 (open), and becomes 0 (closed) or 1 (open).

    Proprio is pose (6), gripper width and gripper action of the 15 entries.
    """
    action, state = steps["action"], steps["observation/state"]
    gripper = tf.cast(action[:, 6:] > 0, tf.float32)
    proprio = tf.concat([state[:, :7], state[:, 14:]], axis=1)
    return proprio, tf.concat([action[:, :6], gripper], axis=1), ALL


STANDARDISATION = Standardisation(
    images={"primary": "observation/rgb_static", "wrist": "observation/rgb_gripper"},
    vectors={"observation/state": 15, "action": 7},
    instruction="language_instruction",
    build=calvin,
    spans=(Span("action", slice(0, 6), -1, 1), Span("action", slice(6, 7), -1, 1, signed=True)),
    own=lambda action: np.concatenate([action[..., :6], 2 * action[..., 6:] - 1], axis=-1),
)
