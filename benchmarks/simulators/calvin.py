"""How often does the scripted expert of CALVIN succeed, and in how many steps?

    CALVIN_ROOT=... SIMULATOR_PYTHON=... python -m benchmarks.simulators.calvin --scenes A D --first 100 --starts 20

One JSON line an episode; those that are in the file are not run again. `--table` prints rates of what is there.
"""

import collections
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro

from octo_integration.collect.experts import disturbed
from octo_integration.evaluate.intervals import wilson_interval
from octo_integration.simulators.calvin import EXPERT_STEPS, SIMULATOR, STEPS
from octo_integration.simulators.calvin.env import CalvinEnv
from octo_integration.simulators.calvin.rules import CHAIN, chain

RESULTS = Path(__file__).parent / "calvin.jsonl"


@dataclasses.dataclass(frozen=True)
class Config:
    """Runs the expert without rendering."""

    scenes: tuple[str, ...] = ("A", "B", "C", "D")
    """Scenes that are tried, one after another."""
    tasks: tuple[str, ...] = tuple(EXPERT_STEPS)
    """Tasks."""
    first: int = 100
    """Seed of the first start; those below it were looked at when the expert was written."""
    starts: int = 20
    """How many of each task."""
    chains: int = 0
    """Instead of single tasks, the first so many chains of every scene."""
    out: Path = RESULTS
    """Where the lines go."""
    table: bool = False
    """Only print what is in the file."""


class Job(NamedTuple):
    """An episode."""

    scene: str
    task: str
    seed: int


def run(env: CalvinEnv, job: Job) -> dict[str, Any]:
    """One episode: whether it succeeded, in how many steps, with the noise of a collected one."""
    rng = np.random.default_rng(job.seed)
    env.begin(job.seed, job.task)
    success, steps = False, 0
    while not success and steps < EXPERT_STEPS[job.task]:
        success = env.advance(disturbed(rng, env.expert_action(), SIMULATOR.noise, SIMULATOR.movement))
        steps += 1
    return {**job._asdict(), "success": success, "steps": steps}


def run_chain(env: CalvinEnv, number: int) -> dict[str, Any]:
    """How many tasks of a chain the expert does in a row, each as a policy's in `evaluate`."""
    rng = np.random.default_rng(number)
    env.reset_to(number)
    for reached, task in enumerate(chain(number).tasks):
        moves = (disturbed(rng, env.expert_action(), SIMULATOR.noise, SIMULATOR.movement) for _ in range(STEPS))
        if not any(map(env.advance, moves)):
            return {"number": number, "reached": reached, "failed": task}
    return {"number": number, "reached": CHAIN, "failed": ""}


def main(config: Config) -> None:
    """Runs what is missing, one start of every task before the next, and prints the table."""
    if config.chains:
        for scene in config.scenes:
            with CalvinEnv(f"chains/{scene}", image_size=16) as env:
                for number in range(config.chains):
                    print(json.dumps({"scene": scene, **run_chain(env, number)}), flush=True)
        return
    for scene in () if config.table else config.scenes:
        done = _read(config.out)
        seeds = range(config.first, config.first + config.starts)
        jobs = [job for seed in seeds for task in config.tasks if (job := Job(scene, task, seed)) not in done]
        if not jobs:
            continue
        with CalvinEnv(f"{scene}/open_drawer") as env, config.out.open("a") as file:
            for job in jobs:
                file.write(json.dumps(run(env, job)) + "\n")
                file.flush()
    print_table(_read(config.out))


def _read(path: Path) -> dict[Job, dict[str, Any]]:
    lines = path.read_text().splitlines() if path.exists() else []
    records = [json.loads(line) for line in lines]
    return {Job(record["scene"], record["task"], record["seed"]): record for record in records}


def print_table(records: Mapping[Job, dict[str, Any]]) -> None:
    """Markdown: a row a task, successes by scene."""
    scenes = sorted({job.scene for job in records})
    print(f"| task | {' | '.join(scenes)} | all | 95 % interval | steps, median |")
    print("|---|" + "---|" * (len(scenes) + 3))
    every = collections.defaultdict(list)
    for job, record in records.items():
        every[job.task].append(record)
    for task in EXPERT_STEPS:
        if found := every[task]:
            print(_row(task, found, scenes))
    print(_row("all", list(records.values()), scenes))


def _row(name: str, found: list[dict[str, Any]], scenes: list[str]) -> str:
    def rate(records: list[dict[str, Any]]) -> str:
        return f"{sum(record['success'] for record in records)}/{len(records)}"

    parts = [rate([record for record in found if record["scene"] == scene]) for scene in scenes]
    low, high = wilson_interval(sum(record["success"] for record in found), len(found))
    steps = np.median([record["steps"] for record in found if record["success"]] or [np.nan])
    return f"| {name} | {' | '.join(parts)} | {rate(found)} | {low:.0%} to {high:.0%} | {steps:.0f} |"


if __name__ == "__main__":
    main(tyro.cli(Config))
