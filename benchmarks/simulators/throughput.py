"""Control steps, frames, demonstrations and episodes per CPU second: Meta-World, LIBERO, and LIBERO by its own package.

    python -m benchmarks.simulators.throughput

Ours and the package's take turns, in every round with the same initial state and actions, each in a process of its
own: the package's reset ends every other OpenGL context. An episode is a reset, the waiting steps and a hundred steps,
without what a policy itself takes. The package renders both cameras at every step, as its users' scripts let it;
`evaluate` where a chunk of actions ends.
One JSON line a measurement; `--table` prints what is there.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro

from octo_integration.collect.experts import demonstrate
from octo_integration.evaluate.rollout import Episode, Rollout, act, start
from octo_integration.simulators.isolated import isolated_env
from octo_integration.simulators.protocol import Environment, find

RESULTS = Path(__file__).parent / "throughput.jsonl"
OURS, PACKAGE = "ours", "the package's"
STEPS, FRAMES, EPISODE = 40, 20, 100  # of one measurement
SIZE = 128  # pixels
QUANTITIES = ("control steps", "frames", "control steps with frames", "episodes", "demonstrations")

# Does something from recorded initial state number ..., and says how often.
Quantity = Callable[[int], int]


class Case(NamedTuple):
    """What is measured, and of how many actions a policy's chunk is."""

    simulator: str
    task: str
    chunk: int


CASES = (Case("metaworld", "push", 4), Case("libero", "libero_spatial/0", 8))


@dataclasses.dataclass(frozen=True)
class Config:
    """Measures CPU time, not wall time; a busy machine's caches still make it longer."""

    rounds: int = 2
    """Measurements of each quantity."""
    out: Path = RESULTS
    """Where the lines go; what is there is replaced."""
    table: bool = False
    """Only print what is in the file."""


class Replay:
    """A policy that has its actions ready."""

    looks_back = 0

    def __init__(self, actions: np.ndarray, chunk: int) -> None:
        """actions: f32[N, A]."""
        self._actions, self._chunk = actions, chunk

    def reset(self) -> None:
        """From the first action."""
        self._next = 0

    def observe(self, observation: Mapping[str, np.ndarray]) -> None:
        """Nothing is remembered."""

    def __call__(self, observation: Mapping[str, np.ndarray], instruction: str) -> np.ndarray:
        """The next ones."""
        self._next += self._chunk
        return self._actions[self._next - self._chunk : self._next]


def _actions(case: Case, number: int, count: int) -> np.ndarray:
    """Small movements, with which nothing succeeds."""
    shape = count, find(case.simulator).action.size
    return np.random.default_rng(number).normal(0, 0.1, shape).astype(np.float32)


def _check(image: np.ndarray) -> None:
    """A context that somebody has ended renders nothing, very quickly."""
    assert image.std() > 10


def ours(env: Environment, case: Case) -> dict[str, Quantity]:
    """What can be measured of every simulator."""
    world, settings = find(case.simulator), Rollout(case.simulator)
    task = world.task(case.task)
    assert task.expert_steps is not None
    movement, expert_steps = world.movement, task.expert_steps

    def begin(number: int) -> Any:
        return start(env, world, Episode(case.task, "none", number), settings)

    def frames(number: int) -> int:
        for _ in range(FRAMES):
            _check(env.look()["image_primary"])
        return FRAMES * len(world.cameras)

    def seen_steps(number: int) -> int:
        for action in _actions(case, number, STEPS):
            env.advance(action)
            env.look()
        return STEPS

    def episode(number: int) -> int:
        policy = Replay(_actions(case, number, EPISODE + case.chunk), case.chunk)
        assert act(env, policy, begin(number), EPISODE, case.chunk, world.action.size).steps == EPISODE
        return 1

    def demonstration(number: int) -> int:
        seed = world.seed(0, case.task, "train", number, 0)
        return int(demonstrate(env, seed, noise=0, max_steps=expert_steps, movement=movement) is not None)

    begin(0)
    return {
        "control steps": lambda number: len([env.advance(action) for action in _actions(case, number, STEPS)]),
        "frames": frames,
        "control steps with frames": seen_steps,
        "episodes": episode,
        "demonstrations": demonstration,
    }


def package(env: Any, case: Case) -> dict[str, Quantity]:
    """The same by LIBERO's package, with its usual settings.

    Args:
      env: our LiberoEnv of the task, whose robosuite environment, without cameras, takes the plain steps.
    """
    from libero.libero.envs import OffScreenRenderEnv

    world = find(case.simulator)
    theirs = OffScreenRenderEnv(bddl_file_name=env._env.bddl_file_name, camera_heights=SIZE, camera_widths=SIZE)
    theirs.seed(0)
    still, cameras = np.append(world.still[:6], -1.0), ("agentview", "robot0_eye_in_hand")

    def begin(number: int) -> None:
        theirs.reset()
        theirs.set_init_state(env._recorded[number])

    def frames(number: int) -> int:
        for camera in FRAMES * cameras:
            _check(theirs.sim.render(camera_name=camera, width=SIZE, height=SIZE))
        return FRAMES * len(cameras)

    def episode(number: int) -> int:
        begin(number)
        for action in (*[still] * world.waiting_steps, *_actions(case, number, EPISODE)):
            theirs.step(action)
        return 1

    begin(0)
    return {
        "control steps": lambda number: len([env._env.step(action) for action in _actions(case, number, STEPS)]),
        "frames": frames,
        "control steps with frames": lambda number: len([theirs.step(a) for a in _actions(case, number, STEPS)]),
        "episodes": episode,
    }


class Side:
    """Ours or the package's, for a process of its own."""

    def __init__(self, case: Case, by: str) -> None:
        """Builds the scene, or both."""
        env = find(case.simulator).make(case.task, image_size=SIZE)
        self._quantities = {OURS: ours, PACKAGE: package}[by](env, case)

    def measure(self, quantity: str, number: int) -> dict[str, float]:
        """Once; empty, where it has no such quantity."""
        if quantity not in self._quantities:
            return {}
        began = time.process_time()
        count = self._quantities[quantity](number)
        return {"count": count, "cpu_seconds": round(time.process_time() - began, 4)}

    def __enter__(self) -> "Side":
        """Itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """The process ends."""


def measure(config: Config, case: Case) -> list[dict[str, Any]]:
    """The lines of a case."""
    lines = []
    with contextlib.ExitStack() as stack:
        names = (OURS, PACKAGE) if case.simulator == "libero" else (OURS,)
        make: Any = Side  # no environment, but treated like one
        sides = {by: stack.enter_context(isolated_env(make, case, by)) for by in names}
        for side in sides.values():
            side.measure("control steps with frames", 0)  # shaders are compiled
        for number, quantity in itertools.product(range(1, config.rounds + 1), QUANTITIES):
            for by in sorted(sides, reverse=bool(number % 2)):
                if found := sides[by].measure(quantity, number):
                    lines.append({**case._asdict(), "quantity": quantity, "by": by, "round": number, **found})
                    print(json.dumps(lines[-1]), flush=True)
    return lines


def print_table(lines: list[dict[str, Any]]) -> None:
    """Markdown: medians over the rounds, and the range of what a round's ratio was."""
    rates: dict[tuple[str, str], dict[str, list[float]]] = {}
    for line in lines:
        found = rates.setdefault((line["simulator"], line["quantity"]), {OURS: [], PACKAGE: []})
        found[line["by"]].append(line["count"] / line["cpu_seconds"])
    print("| simulator | | a CPU second | the package's | ratio (lowest to highest round) |")
    print("|---|---|---|---|---|")
    for (simulator, quantity), found in rates.items():
        mine, other = np.asarray(found[OURS]), np.asarray(found[PACKAGE])
        beside = "| |"
        if len(other):
            ratios = mine / other
            beside = f"{np.median(other):.3g} | {np.median(ratios):.1f} ({ratios.min():.1f} to {ratios.max():.1f}) |"
        print(f"| {simulator} | {quantity} | {np.median(mine):.3g} | {beside}")


def main(config: Config) -> None:
    """Measures and prints the table."""
    if not config.table:
        lines = [line for case in CASES for line in measure(config, case)]
        config.out.write_text("".join(json.dumps(line) + "\n" for line in lines))
    print_table([json.loads(line) for line in config.out.read_text().splitlines()])


if __name__ == "__main__":
    os.environ.setdefault("MUJOCO_GL", "egl")
    os.environ.setdefault("LP_NUM_THREADS", "1")  # of Mesa
    main(tyro.cli(Config))
