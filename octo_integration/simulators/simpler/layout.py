"""How demonstrations in SimplerEnv are written: as BridgeData V2, which the standardisation `bridge` reads, too."""

import numpy as np

from octo_integration.simulators.protocol import Layout, Observation, Vector


def _observe(observation: Observation) -> dict[str, np.ndarray]:
    return {"state": observation["proprio"]}


LAYOUT = Layout(
    vectors={"state": Vector(7, "Hand x, y, z in metres, angles about these, gripper from 0, closed, to 1, open.")},
    observe=_observe,
    action=Vector(7, "Hand movement x, y, z in metres, angles about these in radians; gripper 0 closed, 1 open."),
    act=lambda action: action,
    standard=lambda action: action,
    last_discount=1.0,
    metadata=lambda task, seed: {"task": task, "seed": seed},
    images={"primary": "image_0"},
    standardize="bridge",
)
