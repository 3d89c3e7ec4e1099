"""Success in closed loop: the fine-tuned weights that `study` kept, as policies in Meta-World.

Every policy meets the same initial states and looks, so outcomes are paired; those of seed s are its own.
"""

import concurrent.futures
import functools
import json
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from benchmarks.generalization import study
from benchmarks.generalization.data import STUDY_TASKS
from benchmarks.generalization.evaluate import forward
from benchmarks.generalization.methods import PLAN
from benchmarks.generalization.train import Inputs, Program, text_tokens
from octo_integration.data import Statistics

Tree = Any

SHIFTS = ("none", "light", "camera", "all")
MAX_STEPS, EXECUTE = 80, 4
SEED = 5000


class Job(NamedTuple):
    """All episodes of one fine-tuned model on one task."""

    weights: Path
    out: Path
    task: str
    episodes: int


def run(out: Path, results: Path, methods: Sequence[str], workers: int, episodes: int) -> None:
    """Runs what is missing in `results`, one JSON line per weights, shift and task.

    Args:
      out: of `study.run`.
      methods: names of points of the plan, such as "linear/lambda=2".
      episodes: per task, shift and weights.

    Raises:
      FileNotFoundError: no weights of a method were kept.
    """
    labels = {point.name: point.label for point in PLAN}
    files = []
    for name in methods:
        found = sorted((out / "weights").glob(f"{name.replace('/', '--')}--p*--s*.safetensors"))
        if not found:
            raise FileNotFoundError(f"there are no weights of {name} in {out}; run the study first.")
        files += found
    lines = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    done = {(line["key"], line["task"]) for line in lines}
    jobs = [Job(file, out, task, episodes) for task in STUDY_TASKS for file in files if (_key(file), task) not in done]
    os.environ.update(study.ENVIRONMENT)
    context = multiprocessing.get_context("spawn")
    origin = {"commit": study.commit(), "machine": study.machine()}
    with concurrent.futures.ProcessPoolExecutor(workers, context, initializer=study.ignore_interrupts) as pool:
        futures = {pool.submit(execute, job): job for job in jobs}
        try:
            with tqdm(total=len(jobs), desc="success", unit="task") as bar, results.open("a") as file:
                for future in concurrent.futures.as_completed(futures):
                    job = futures[future]
                    name, pretrain, seed = _key(job.weights).rsplit("/", 2)
                    about = {"key": _key(job.weights), "method": name.split("/")[0], "label": labels[name]}
                    point = {"x": float(name.split("=")[1]) if "=" in name else None}
                    pair = {"pretrain": int(pretrain[1:]), "seed": int(seed[1:])}
                    for shift, outcomes in future.result().items():
                        record = {**about, **point, **pair, "shift": shift, "task": job.task, "outcomes": outcomes}
                        file.write(json.dumps({**record, **origin}) + "\n")
                    file.flush()
                    bar.update()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _key(weights: Path) -> str:
    return weights.stem.replace("--", "/")


def execute(job: Job) -> dict[str, list[bool]]:
    """shift -> outcomes of the episodes; runs in a worker."""
    from octo_integration.data.collect.env import seed_of
    from octo_integration.data.collect.parallel import environment
    from octo_integration.data.collect.shifts import draw_shift
    from octo_integration.evaluate.rollout import run_episode

    env = environment(job.task, 64)
    policy = StudyPolicy(_params(job.weights), job.out)
    seed = int(_key(job.weights).rsplit("/s", 1)[1])
    outcomes: dict[str, list[bool]] = {}
    for shift in SHIFTS:
        outcomes[shift] = []
        for index in range(job.episodes):
            start = seed_of(SEED + seed, job.task, "success", index)
            env.set_shift(draw_shift(shift, start, "restricted"))
            outcomes[shift].append(run_episode(env, policy, start, MAX_STEPS, EXECUTE)[0])
    return outcomes


@functools.lru_cache(maxsize=2)
def _params(weights: Path) -> Tree:
    from benchmarks.generalization.worker import initial
    from octo_integration.weights.store import load_params

    return jax.device_put(load_params(weights, initial(Program(), None, 0)))


class StudyPolicy:
    """The policy of `evaluate.rollout` that sees the image and the instruction, and not the robot's own state."""

    def __init__(self, params: Tree, out: Path) -> None:
        """params: of the model; out: of `study.run`, for the statistics of its actions."""
        self._params = params
        self._statistics = Statistics.from_json((out / "arrays" / "statistics.json").read_text())

    def reset(self) -> None:
        """Nothing is remembered."""

    def observe(self, observation: Mapping[str, np.ndarray]) -> None:
        """Nothing is remembered."""

    def __call__(self, observation: Mapping[str, np.ndarray], instruction: str) -> np.ndarray:
        """f32[chunk, 4], in the simulator's units."""
        tokens, mask = text_tokens([instruction])
        inputs = Inputs(observation["image_primary"][None], tokens, mask, np.zeros(1, np.int32))
        chunk = forward(Program())(self._params, inputs)
        return np.asarray(self._statistics.unnormalise_action(np.asarray(chunk[0])), np.float32)
