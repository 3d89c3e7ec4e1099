"""How often does the scripted expert of SimplerEnv's WidowX succeed, in how many steps, at what cost?

    SIMPLER_ROOT=... SIMULATOR_PYTHON=... python -m benchmarks.simulators.simpler --seeds 24

One JSON line an episode; those that are in the file are not run again. `--table` prints rates of what is there.
"""

import dataclasses
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from octo_integration.collect.experts import disturbed
from octo_integration.evaluate.intervals import wilson_interval
from octo_integration.simulators.simpler import SIMULATOR
from octo_integration.simulators.simpler.env import SimplerEnv
from octo_integration.simulators.simpler.tasks import INITIAL_STATES

RESULTS = Path(__file__).parent / "simpler.jsonl"
FIRST = 100  # seed; those below it were looked at when the expert was written


@dataclasses.dataclass(frozen=True)
class Config:
    """Runs the expert."""

    tasks: tuple[str, ...] = SIMULATOR.default_tasks
    """Tasks."""
    seeds: int = 24
    """How many starts of ours, beside the benchmark's 24."""
    image_size: int | None = None
    """With an image of every step, as `collect` has it; None: without, which takes half the time."""
    out: Path = RESULTS
    """Where the lines go."""
    table: bool = False
    """Only print what is in the file."""


def run(env: SimplerEnv, task: str, own: bool, number: int, *, look: bool) -> dict[str, Any]:
    """One episode, with the noise of a collected one."""
    before, rng = _cpu(env), np.random.default_rng(number)
    env.begin(number) if own else env.begin_at(number)
    success, steps = False, 0
    while not success and steps < (SIMULATOR.tasks[task].expert_steps or 0):
        if look:
            env.look()
        success = env.advance(disturbed(rng, env.expert_action(), SIMULATOR.noise, SIMULATOR.movement))
        steps += 1
    cpu = round(_cpu(env) - before, 2)
    line = {"task": task, "own": own, "number": number, "success": success, "steps": steps}
    return {**line, "cpu": cpu} if look else line


def _cpu(env: SimplerEnv) -> float:
    """Seconds of ours and of the simulator's process."""
    fields = Path(f"/proc/{env._child._process.pid}/stat").read_text().rpartition(")")[2].split()
    return time.process_time() + sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def main(config: Config) -> None:
    """Runs what is missing and prints the table."""
    starts = [(False, number) for number in range(INITIAL_STATES)]
    starts += [(True, FIRST + number) for number in range(config.seeds)]
    done = {(line["task"], line["own"], line["number"]) for line in _read(config.out)}
    for task in () if config.table else config.tasks:
        missing = [(own, number) for own, number in starts if (task, own, number) not in done]
        if not missing:
            continue
        look = config.image_size is not None
        with SimplerEnv(task, image_size=config.image_size or 8) as env, config.out.open("a") as file:
            if look:
                env.reset(0)  # the first image takes 10 s
            for own, number in missing:
                file.write(json.dumps(run(env, task, own, number, look=look)) + "\n")
                file.flush()
    _print_table(_read(config.out))


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _print_table(lines: list[dict[str, Any]]) -> None:
    print("| task | the benchmark's 24 | ours | all | 95 % interval | steps, median | CPU s with images |")
    print("|---|---|---|---|---|---|---|")
    for task in dict.fromkeys(line["task"] for line in lines):
        found = [line for line in lines if line["task"] == task]
        low, high = wilson_interval(sum(line["success"] for line in found), len(found))
        rates = [_rate(line for line in found if line["own"] in which) for which in ((False,), (True,), (False, True))]
        steps = np.median([line["steps"] for line in found if line["success"]])
        costs = [line["cpu"] for line in found if "cpu" in line]
        cpu = f"{np.median(costs):.1f}" if costs else "–"
        print(f"| {task} | {' | '.join(rates)} | {low:.0%} to {high:.0%} | {steps:.0f} | {cpu} |")


def _rate(lines: Iterable[dict[str, Any]]) -> str:
    successes = [line["success"] for line in lines]
    return f"{sum(successes)}/{len(successes)}"


if __name__ == "__main__":
    main(tyro.cli(Config))
