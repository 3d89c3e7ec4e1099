"""Success in closed loop: the fine-tuned weights that `study` kept, as policies in Meta-World.

Every policy meets the same initial states and looks, so outcomes are paired; those of seed s are its own.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.generalization import statistics
from benchmarks.generalization.choice import chosen_points
from benchmarks.generalization.data import STUDY_TASKS
from benchmarks.generalization.evaluate import forward
from benchmarks.generalization.methods import Point
from benchmarks.generalization.plan import data_path, kept_path
from benchmarks.generalization.processes import CPU, Record, write_lines
from benchmarks.generalization.train import Inputs, Program, text_tokens
from benchmarks.generalization.worker import KEPT, initial
from octo_integration.collect.parallel import environment
from octo_integration.data import Statistics
from octo_integration.evaluate.rollout import act
from octo_integration.model.sizes import CONFIGS
from octo_integration.simulators.metaworld.env import ACTION_SIZE, MetaWorldEnv
from octo_integration.simulators.metaworld.shifts import draw_shift
from octo_integration.simulators.seeds import seed_of
from octo_integration.weights.store import load_params

Tree = Any

MAX_STEPS, EXECUTE = 80, 4
SEED = 5000


class Job(NamedTuple):
    """All episodes of one fine-tuned model on one task."""

    weights: Path
    point: Point
    data: Path
    task: str
    shifts: tuple[str, ...]
    episodes: int


def run(
    profile: str,
    out: Path,
    results: Path,
    methods: Sequence[str],
    shifts: tuple[str, ...],
    *,
    workers: int,
    episodes: int,
) -> None:
    """Runs what is missing in `results`, one JSON line per weights, shift and task.

    Args:
      profile, out: of `study.run`.
      methods: names of points of the plan, such as "linear/lambda=2".
      shifts: names from `octo_integration.simulators.metaworld.shifts`.
      episodes: per task, shift and weights.

    Raises:
      FileNotFoundError: no weights of a method were kept.
      ValueError: there is no such point or shift; episodes is below 1; a line of `results` is damaged.
      ChildProcessError, SystemExit: as `write_lines`.
    """
    if episodes < 1:
        raise ValueError(f"episodes is {episodes}; give at least 1.")
    for shift in shifts:
        draw_shift(shift, SEED)
    points = {point.name: point for point in chosen_points(profile, out)}
    for name in methods:
        if name not in points:
            raise ValueError(f"the plan has no point {name!r}; there are {', '.join(points)}.")
    files = [(file, points[name]) for name in methods for file in _weights(kept_path(profile, out), name)]
    lines = statistics.read(results, statistics.SUCCESS_FIELDS) if results.exists() else []
    enough = {(r["key"], r["task"], r["shift"]) for r in lines if len(r["outcomes"]) >= episodes}
    jobs = [
        Job(file, point, data_path(profile, _seeds(file)[1], out), task, shifts, episodes)
        for task in STUDY_TASKS
        for file, point in files
        if not {(_key(file), task, shift) for shift in shifts} <= enough
    ]
    write_lines(execute, jobs, results, workers=workers, label="success", environment=CPU)


def _weights(kept: Path, name: str) -> list[Path]:
    found = sorted(kept.glob(f"{name.replace('/', '--')}--p*--s*.safetensors"))
    if not found:
        raise FileNotFoundError(
            f"there are no weights of {name} in {kept}; run the study first, which keeps those of {', '.join(KEPT)}."
        )
    return found


def _key(weights: Path) -> str:
    return weights.stem.replace("--", "/")


def _seeds(weights: Path) -> tuple[int, int]:
    """Of pretraining and run."""
    _, pretrain, seed = _key(weights).rsplit("/", 2)
    return int(pretrain[1:]), int(seed[1:])


def execute(job: Job) -> list[Record]:
    """One record per shift; runs in a worker."""
    pretrain, seed = _seeds(job.weights)
    about: Record = {
        "key": _key(job.weights),
        "method": job.point.method,
        "label": job.point.label,
        "x": job.point.x,
        "pretrain": pretrain,
        "seed": seed,
        "task": job.task,
    }
    env = environment(MetaWorldEnv, job.task, CONFIGS[job.point.model].image_size)
    policy = StudyPolicy(job.point.model, _params(job.weights, job.point.model), job.data)
    records = []
    for shift in job.shifts:
        outcomes = []
        for index in range(job.episodes):
            start = seed_of(SEED + about["seed"], job.task, "success", index)
            env.set_shift(draw_shift(shift, start, "restricted"))
            outcomes.append(act(env, policy, env.reset(start), MAX_STEPS, EXECUTE, ACTION_SIZE).success)
        records.append({**about, "shift": shift, "outcomes": outcomes})
    return records


@functools.lru_cache(maxsize=2)
def _params(weights: Path, model: str) -> Tree:
    return jax.device_put(load_params(weights, initial(Program(model), None, 0)))


class StudyPolicy:
    """The policy of `evaluate.rollout` that sees the image and the instruction, and not the robot's own state."""

    looks_back = 0

    def __init__(self, model: str, params: Tree, data: Path) -> None:
        """model: of `sizes.CONFIGS`; data: of the run, for the statistics of its actions."""
        self._model, self._params = model, params
        self._statistics = Statistics.from_json((data / "arrays" / "statistics.json").read_text())

    def reset(self) -> None:
        """Nothing is remembered."""

    def observe(self, observation: Mapping[str, np.ndarray]) -> None:
        """Nothing is remembered."""

    def __call__(self, observation: Mapping[str, np.ndarray], instruction: str) -> np.ndarray:
        """f32[chunk, 4], in the simulator's units."""
        tokens, mask = text_tokens([instruction])
        inputs = Inputs(observation["image_primary"][None], tokens, mask, np.zeros(1, np.int32))
        chunk = forward(self._model)(self._params, inputs)
        return np.asarray(self._statistics.unnormalise_action(np.asarray(chunk[0])), np.float32)
