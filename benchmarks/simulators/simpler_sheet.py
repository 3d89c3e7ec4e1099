"""Draws every task of SimplerEnv's WidowX: how an episode of the benchmark begins, the grasp, and when it is done.

SIMPLER_ROOT=... SIMULATOR_PYTHON=... python -m benchmarks.simulators.simpler_sheet
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from benchmarks.simulators.sheet import SIZE, sheet
from octo_integration.simulators.simpler import SIMULATOR
from octo_integration.simulators.simpler.env import SimplerEnv

EPISODE = 2
HELD = 0.05  # metres that the thing has been lifted by


def pictures() -> Iterable[tuple[str, np.ndarray]]:
    """Three of a task, with names; a task that the expert did not do is said so."""
    for task, about in SIMULATOR.tasks.items():
        with SimplerEnv(task, image_size=SIZE) as env:
            yield task, env.reset_to(EPISODE)["image_primary"]
            height, held, done = env._state["source"][2], None, False
            for _ in range((about.expert_steps or 0) // 2):
                if held is None and env._state["source"][2] > height + HELD:
                    held = env.look()["image_primary"]
                done = done or env.advance(env.expert_action())
            if held is not None:
                yield "held", held
            yield "done" if done else "done (no)", env.look()["image_primary"]


if __name__ == "__main__":
    sheet(pictures(), Path(__file__).parent / "simpler.jpg")
