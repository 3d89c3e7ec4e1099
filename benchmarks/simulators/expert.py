"""How often does the scripted expert of LIBERO succeed, from recorded initial states, and in how many steps?

    python -m benchmarks.simulators.expert --suites libero_spatial libero_goal --first 10 --states 20

One JSON line an episode; those that are in the file are not run again. `--table` prints rates of what is there.
"""

import collections
import dataclasses
import functools
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro

from octo_integration.collect.experts import disturbed
from octo_integration.collect.parallel import parallel_map
from octo_integration.evaluate.intervals import wilson_interval
from octo_integration.simulators.libero import SIMULATOR
from octo_integration.simulators.libero.env import LiberoEnv

RESULTS = Path(__file__).parent / "expert.jsonl"


@dataclasses.dataclass(frozen=True)
class Config:
    """Runs the expert without rendering."""

    suites: tuple[str, ...] = ("libero_spatial", "libero_object", "libero_goal")
    """Suites whose tasks are tried."""
    tasks: tuple[str, ...] = ()
    """Tasks, instead of all of the suites."""
    first: int = 10
    """The first recorded initial state; those before it were looked at when the expert was written."""
    states: int = 20
    """How many of them."""
    noise: float = 0.0
    """Standard deviation of the noise on carried-out movements."""
    workers: int = 1
    """Processes."""
    out: Path = RESULTS
    """Where the lines go."""
    table: bool = False
    """Only print what is in the file."""


class Job(NamedTuple):
    """An episode."""

    task: str
    state: int
    noise: float


@functools.lru_cache(maxsize=1)  # a scene takes up to 1 GB
def _environment(task: str) -> LiberoEnv:
    return LiberoEnv(task)


def run(job: Job) -> dict[str, Any]:
    """One episode: whether it succeeded, in how many steps and CPU seconds."""
    env = _environment(job.task)
    limit = SIMULATOR.task(job.task).expert_steps
    assert limit is not None  # main has seen to it
    rng, started = np.random.default_rng(job.state), time.process_time()
    env.begin_at(job.state)
    for _ in range(SIMULATOR.waiting_steps):
        env.advance(np.array(SIMULATOR.still))
    success, steps = False, 0
    while not success and steps < limit:
        success = env.advance(disturbed(rng, env.expert_action(), job.noise, SIMULATOR.movement))
        steps += 1
    seconds = round(time.process_time() - started, 2)
    return {**job._asdict(), "success": success, "steps": steps, "cpu_seconds": seconds}


def main(config: Config) -> None:
    """Runs what is missing and prints the table."""
    tasks = config.tasks or [task for suite in config.suites for task in SIMULATOR.suite(suite)]
    tasks = [task for task in tasks if SIMULATOR.task(task).expert_steps]
    states = range(config.first, config.first + config.states)
    done = _read(config.out)
    jobs = [Job(task, state, config.noise) for task in tasks for state in states]
    jobs = [job for job in jobs if job not in done and job.state < SIMULATOR.task(job.task).initial_states]
    if jobs and not config.table:
        with config.out.open("a") as file:
            for record in parallel_map(run, jobs, workers=config.workers, label="expert", unit="episode"):
                file.write(json.dumps(record) + "\n")
                file.flush()
    print_table(_read(config.out))


def _read(path: Path) -> dict[Job, dict[str, Any]]:
    lines = path.read_text().splitlines() if path.exists() else []
    records = [json.loads(line) for line in lines]
    return {Job(record["task"], record["state"], record["noise"]): record for record in records}


def print_table(records: Mapping[Job, dict[str, Any]]) -> None:
    """Markdown: a line a suite and noise."""
    groups: dict[tuple[str, float], list[dict[str, Any]]] = collections.defaultdict(list)
    for job, record in records.items():
        groups[job.task.partition("/")[0], job.noise].append(record)
    print("| suite | noise | successes | 95 % interval | by task | steps, median | CPU s an episode |")
    print("|---|---|---|---|---|---|---|")
    for (suite, noise), found in sorted(groups.items()):
        wins = [record["success"] for record in found]
        low, high = wilson_interval(sum(wins), len(wins))
        tasks: dict[int, list[bool]] = collections.defaultdict(list)
        for record in found:
            tasks[int(record["task"].partition("/")[2])].append(record["success"])
        parts = " ".join(f"{sum(part)}/{len(part)}" for _, part in sorted(tasks.items()))
        steps = np.median([record["steps"] for record in found if record["success"]] or [np.nan])
        seconds = np.mean([record["cpu_seconds"] for record in found])
        rate = f"{sum(wins)}/{len(wins)} ({100 * np.mean(wins):.1f} %) | {100 * low:.1f} to {100 * high:.1f}"
        print(f"| {suite} | {noise} | {rate} | {parts} | {steps:.0f} | {seconds:.1f} |")


if __name__ == "__main__":
    os.environ.setdefault("MUJOCO_GL", "egl")
    main(tyro.cli(Config))
