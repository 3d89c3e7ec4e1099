"""Does an environment of LIBERO keep memory from episode to episode?

    python -m benchmarks.simulators.memory

Resets one environment to its recorded initial states, takes the waiting steps and renders both cameras, over and over,
and prints the process's memory and its slope over the second half.
"""

import dataclasses
import itertools
import os
from pathlib import Path

import numpy as np
import tyro
from tqdm import tqdm

from octo_integration.simulators.isolated import isolated_env
from octo_integration.simulators.protocol import find

EVERY = 25  # episodes between two looks at the memory


@dataclasses.dataclass(frozen=True)
class Config:
    """One process, one environment."""

    task: str = "libero_spatial/0"
    """Of which task."""
    episodes: int = 500
    """How many."""


def main(config: Config) -> None:
    """Prints a line."""
    simulator = find("libero")
    states = itertools.cycle(range(simulator.task(config.task).initial_states))
    seen = []
    with isolated_env(simulator.make, config.task, image_size=128) as env:
        for number in tqdm(range(config.episodes + 1), unit="episode"):
            env.reset_to(next(states))
            for _ in range(simulator.waiting_steps):
                env.advance(np.array(simulator.still))
            env.look()
            if number % EVERY == 0:
                seen.append((number, resident()))
    late = np.array(seen[len(seen) // 2 :])
    slope = np.polyfit(late[:, 0], late[:, 1], 1)[0]
    (_, first), (last, end) = seen[0], seen[-1]
    print(f"{first:.1f} MiB after the first, {end:.1f} after {last}; {1024 * slope:.2f} KiB an episode")


def resident() -> float:
    """MiB of this process and its children."""
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in family(os.getpid()))
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def family(pid: int) -> list[int]:
    """A process and those that it started."""
    children = [int(n) for file in Path(f"/proc/{pid}/task").glob("*/children") for n in file.read_text().split()]
    return [pid, *(one for child in children for one in family(child))]


if __name__ == "__main__":
    os.environ.setdefault("MUJOCO_GL", "egl")
    main(tyro.cli(Config))
