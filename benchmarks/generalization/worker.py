"""What a worker process does with one job of the study; data and compiled programs stay in its memory."""

import functools
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

import maps_optax as mx
from benchmarks.generalization import plan
from benchmarks.generalization.data import first_episodes, load
from benchmarks.generalization.evaluate import Held, Probes, drift
from benchmarks.generalization.methods import Derived, Point
from benchmarks.generalization.plan import Job, described
from benchmarks.generalization.prices import pricing_of
from benchmarks.generalization.processes import Record
from benchmarks.generalization.strengths import mean_strength
from benchmarks.generalization.train import (
    Inputs,
    Program,
    batches,
    fine_tune,
    inputs_of,
    knobs_of,
    model_config,
    observe,
    program_of,
)
from octo_integration.model.config import FRESH, PRETRAINED
from octo_integration.model.sizes import CONFIGS
from octo_integration.model.vla import VLA
from octo_integration.state.lora import adapters, base, merge_lora, whole
from octo_integration.weights.store import load_params, save_params

Tree = Any

# Their weights are kept for closed-loop evaluation.
KEPT = ("adam", "frozen-vision", "linear", "uniform", "reversed", "lora")


def run(job: Job) -> list[Record]:
    """Fine-tunes, then measures the end of the run and the points derived from it."""
    point, profile = job.point, plan.PROFILES[job.profile]
    program, steps = program_of(point), point.steps or profile.steps
    theta0 = initial(program, job.weights if point.start == "pretrained" else None, job.seed)
    knobs = knobs_of(point, theta0, profile.lr, steps)
    inputs, task = _training(job.data, point.demos, point.blind)
    pricing = pricing_of(point, theta0)
    result = fine_tune(program, theta0, knobs, inputs, batches(task, steps, job.seed), pricing)
    lora = model_config(program).lora
    start = merge_lora(theta0, lora) if program.lora else theta0
    end, average = (merge_lora(p, lora) if program.lora else p for p in (result.params, result.average))
    extra: Record = {"train_loss": round(result.loss, 5), "losses": [round(loss, 4) for loss in result.losses]}
    if pricing:
        extra["moments"] = [moment._asdict() for moment in result.moments]
    if point.lambda_max:
        extra["mean_lambda"] = mean_strength(knobs.strength, theta0)
    if point.method in KEPT:
        save_params(plan.kept_path(job.profile, job.out) / f"{job.key.replace('/', '--')}.safetensors", end)
    records = [{**_measured(job, point, end, start), **extra}]
    for derived in point.derived:
        merged = merge(derived, start, average if derived.average else end)
        records.append(_measured(job, derived, merged, start))
    return records


def pretrained(job: Job) -> list[Record]:
    """What the pretrained model knows before fine-tuning, and the best constant chunk."""
    theta0 = initial(program_of(job.point), job.weights, job.seed)
    record = described(job, job.point)
    constant = {
        **described(job, Point("constant", "best constant chunk")),
        "l1": {
            part: _held(job.data, part, False, _every(job)).constant(load(job.data, "train")) for part in _parts(job)
        },
        "drift": {},
        "relative_drift": {},
        "probes": {},
    }
    probes = {
        "l1": {},
        "drift": {},
        "relative_drift": {},
        "probes": _rounded(_probes(job.data).measure(job.point.model, theta0)),
    }
    return [{**record, **probes}, constant]


def merge(derived: Derived, theta0: Tree, params: Tree) -> Tree:
    """θ0 + alpha (θ − θ0) in the modules that `derived` names."""
    merged = derived.modules or PRETRAINED

    def alpha(path: Any, leaf: Any) -> float:
        del leaf
        return derived.alpha if path[0].key in merged else 1.0

    return mx.interpolate(theta0, params, jax.tree_util.tree_map_with_path(alpha, theta0))


def initial(program: Program, weights: Path | None, seed: int) -> Tree:
    """θ0: pretrained modules out of `weights` (None: random ones), fresh modules and adapters of `seed`."""
    params = _initialise(program)(jax.random.key(seed), *_template(program))["params"]
    if weights is None:
        return params
    loaded = load_params(weights, base(params), fresh=FRESH)
    return jax.tree.map(jax.numpy.asarray, whole(loaded, adapters(params)))


@functools.cache
def _initialise(program: Program) -> Any:
    return jax.jit(VLA(model_config(program)).init)


def _template(program: Program) -> Any:
    config = CONFIGS[program.model]
    tokens = np.zeros((1, config.instruction_length), np.int32)
    image = np.zeros((1, config.image_size, config.image_size, 3), np.uint8)
    text = np.zeros(1, np.int32)
    return observe(Inputs(image, tokens, tokens == 0, text), text)


def _measured(job: Job, point: Point | Derived, params: Tree, theta0: Tree) -> Record:
    model = job.point.model
    moved, relative = drift(params, theta0)
    parts = {part: _held(job.data, part, job.point.blind, _every(job)).errors(model, params) for part in _parts(job)}
    asked = isinstance(point, Point) and point.start == "pretrained" and "test" in parts
    probes = _probes(job.data).measure(model, params) if asked else {}
    return {
        **described(job, point),
        "l1": parts,
        "drift": _rounded(moved),
        "relative_drift": _rounded(relative),
        "probes": _rounded(probes),
    }


def _rounded(values: Any) -> dict[str, float]:
    return {name: float(f"{value:.6g}") for name, value in values.items()}


def _parts(job: Job) -> tuple[str, ...]:
    return plan.PROFILES[job.profile].parts


def _every(job: Job) -> int:
    return plan.PROFILES[job.profile].every


@functools.lru_cache(maxsize=4)
def _held(out: Path, part: str, blind: bool, every: int) -> Held:
    return Held(out, part, blind, every)


@functools.cache
def _probes(out: Path) -> Probes:
    return Probes(out)


@functools.lru_cache(maxsize=4)
def _training(out: Path, demos: int | None, blind: bool) -> tuple[Inputs, np.ndarray]:
    windows = load(out, "train")
    kept = windows if demos is None else first_episodes(windows, demos)
    return jax.device_put(inputs_of(kept, blind)), kept.task


def execute(job: Job) -> list[Record]:
    """One run and all it is measured by; runs in a worker."""
    started = time.perf_counter()
    records = pretrained(job) if job.point.method == "pretrained" else run(job)
    seconds = round(time.perf_counter() - started, 1)
    return [{**record, "seconds": seconds} for record in records]
