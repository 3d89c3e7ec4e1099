"""Draws one picture of every scene of CALVIN: how it begins, seen by both cameras, and each task when it is done.

CALVIN_ROOT=... SIMULATOR_PYTHON=... python -m benchmarks.simulators.calvin_sheet
"""

import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from benchmarks.simulators.sheet import SIZE, sheet
from octo_integration.simulators.calvin import EXPERT_STEPS
from octo_integration.simulators.calvin.env import CalvinEnv

HERE = Path(__file__).parent
SEED = 1
SHORT = {"_block": "", "move_": "", "lightbulb": "bulb", "rotate": "turn"}


def pictures(scene: str) -> Iterable[tuple[str, np.ndarray]]:
    """What is seen, with names; a task that the expert did not do is said so."""
    with CalvinEnv(f"{scene}/open_drawer", image_size=SIZE) as env:
        first = env.reset(SEED)
        yield f"{scene}: static", first["image_primary"]
        yield "gripper", first["image_wrist"]
        for task, steps in EXPERT_STEPS.items():
            env.begin(SEED, task)
            done = any(env.advance(env.expert_action()) for _ in range(steps))
            name = task
            for long, short in SHORT.items():
                name = name.replace(long, short)
            yield name if done else f"{name} (no)", env.look()["image_primary"]


if __name__ == "__main__":
    for letter in sys.argv[1:] or "ABCD":
        sheet(pictures(letter), HERE / f"calvin_{letter}.jpg")
