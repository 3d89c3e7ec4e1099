"""BridgeData V2."""

from typing import Any

from octo_integration.data.standardize import Fields, Span, Standardisation, binarise_gripper
from octo_integration.data.tf import tf


def bridge(steps: Fields) -> tuple[Any, Any, slice]:
    """BridgeData V2 as Octo does it (octo/data/oxe/oxe_standardization_transforms.py).

    The first six action entries (metres, radians) become the movement that the arm made, from the
    states, in place of the one commanded; the gripper becomes 0 (closed) or 1 (open). The last
    step, whose movement is unknown, is dropped. Proprio is all of the state.
    """
    state, action = steps["observation/state"], steps["action"]
    movement = state[1:, :6] - state[:-1, :6]
    gripper = binarise_gripper(action[:, 6])
    return state[:-1], tf.concat([movement, gripper[:-1, None]], axis=1), slice(None, -1)


STANDARDISATION = Standardisation(
    images={"primary": "observation/image_0", "secondary": "observation/image_1", "wrist": "observation/image_3"},
    vectors={"observation/state": 7, "action": 7},
    instruction="language_instruction",
    build=bridge,
    spans=(Span("action", slice(6, 7), 0, 1),),
)
