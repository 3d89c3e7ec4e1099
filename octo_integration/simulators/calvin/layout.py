"""How demonstrations in CALVIN are written: as in calvin_abc_rlds, which the standardisation `calvin` reads, too."""

import numpy as np

from octo_integration.simulators.protocol import Layout, Observation, Vector


def _observe(observation: Observation) -> dict[str, np.ndarray]:
    return {"state": observation["robot_obs"]}


def _act(action: np.ndarray) -> np.ndarray:
    """The gripper from 0 (closed) and 1 (open) to -1 and 1."""
    return np.append(action[:6], 2 * action[6:] - 1).astype(np.float32)


LAYOUT = Layout(
    vectors={"state": Vector(15, "Hand x, y, z, angles about these; fingers' distance; 7 joints; gripper, -1 or 1.")},
    observe=_observe,
    action=Vector(7, "Hand movement x, y, z (1: 2 cm), angles about these (1: 0.05 rad); gripper -1 closed, 1 open."),
    act=_act,
    standard=lambda action: np.concatenate([action[..., :6], (action[..., 6:] + 1) / 2], axis=-1),
    last_discount=1.0,
    metadata=lambda task, seed: {"task": task, "seed": seed},
    images={"primary": "rgb_static", "wrist": "rgb_gripper"},
)
