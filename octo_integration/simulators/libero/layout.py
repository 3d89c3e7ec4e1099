"""How demonstrations in LIBERO are written: as in modified_libero_rlds, the data that OpenVLA re-recorded.

Its builder and its features.json (github.com/moojink/rlds_dataset_builder) are what this follows; the standardisation
`libero` reads both.
"""

import numpy as np

from octo_integration.simulators.protocol import Layout, Observation, Vector


def _observe(observation: Observation) -> dict[str, np.ndarray]:
    return {"state": observation["proprio"], "joint_state": observation["joints"]}


def _act(action: np.ndarray) -> np.ndarray:
    """The gripper from 1 (open) and 0 (closed) to -1 and 1."""
    return np.append(action[:6], 1 - 2 * action[6:]).astype(np.float32)


LAYOUT = Layout(
    vectors={
        "state": Vector(8, "Robot EEF state (6D pose, 2D gripper)."),
        "joint_state": Vector(7, "Robot joint angles."),
    },
    observe=_observe,
    action=Vector(7, "Robot EEF action."),
    act=_act,
    standard=lambda action: np.concatenate([action[..., :6], (1 - action[..., 6:]) / 2], axis=-1),
    last_discount=1.0,
    # There: the path of the file that a demonstration comes from.
    metadata=lambda task, seed: {"file_path": f"{task}/seed_{seed}"},
)
