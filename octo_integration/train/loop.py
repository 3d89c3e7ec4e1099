"""Fine-tuning from start, or from where it stopped, to the end: `finetune(config)`."""

import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh

import maps_optax as mx
from octo_integration import data
from octo_integration.common import files
from octo_integration.common.paths import refuse_schemes
from octo_integration.config import FinetuneConfig, differences, read_config, read_versions, to_dict
from octo_integration.data.statistics import cache_directory
from octo_integration.evaluate.action_error import ActionError, action_error
from octo_integration.evaluate.drift import drift, write_drift
from octo_integration.logs.run_log import open_log
from octo_integration.model.adapters import with_adapters
from octo_integration.policy.predict import Predict, make_predict
from octo_integration.processes import claim, distributed, flags, lifeline
from octo_integration.processes.interrupts import Interrupted, Request, interrupts
from octo_integration.state import checkpoint, lora, sharding
from octo_integration.state.optimizer import batches_applied, learning_rate, make_optimizer
from octo_integration.state.setup import Built, abstract_params, build, find_tokenizer, initial_params
from octo_integration.state.train_state import TrainState, abstract_state, init_state, shardings_of
from octo_integration.train import checks, defaults, finite
from octo_integration.train.step import Metrics, make_loss, make_train_step

Tree = Any

# Fields that may differ from those the run was started with; all others would make it another run.
MAY_CHANGE = (
    "out",
    "maps.",
    "mesh.",
    "optimizer.steps",
    "eval_splits",
    "log_every",
    "eval_every",
    "save_every",
    "keep",
    "nan_policy",
    "max_skips",
)
PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")
# Steps that are dispatched while the device works on another one: enough to keep it busy, and few to wait for when a
# signal asks to stop.
AHEAD = 1


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
      step: optimizer steps done, all of them saved.
      signal: the signal that ended it early, or None.
      errors: split -> action error at the end; empty if it ended early.
    """

    step: int
    signal: int | None
    errors: dict[str, ActionError]


class _Run(NamedTuple):
    """What stays the same through a run."""

    config: FinetuneConfig
    out: Path
    built: Built
    mesh: Mesh
    share: tuple[int, int]
    theta0: Tree
    predict: Predict
    layer_metrics: Callable[[Tree], dict[str, jax.Array]]
    merge: Callable[[Tree], Tree]
    manager: ocp.CheckpointManager


def finetune(config: FinetuneConfig) -> Outcome:
    """Runs, or resumes, a fine-tuning run; see `FinetuneConfig`.

    Raises:
      FileNotFoundError, ValueError: config, data set, weights or checkpoint do not fit (before the first step).
      FloatingPointError: loss or gradient became NaN or inf; names the step. Checkpoints before it are kept.
      OSError: a checkpoint could not be written.

    Where another process of a multi-process run is gone, this one prints one line and exits (see `lifeline`).
    """
    refuse_schemes(config)
    distributed.start(config.mesh)
    out = Path(config.out)
    with lifeline.together(out), claim.held(out):
        return _finetune(config, out)


def _finetune(config: FinetuneConfig, out: Path) -> Outcome:
    mesh = sharding.make_mesh(config.mesh)
    share = sharding.batch_share(config.data.batch_size, mesh)
    config = defaults.of_run(config, out)
    _check_same_run(out, config)
    checks.check(config, hosts=share[1])
    config = defaults.of_data(config)
    _say(f"measures the action error on: {', '.join(config.eval_splits or ['nothing; give --eval-splits'])}")
    built = build(config, data.compute_statistics(config.data, cache_directory()))
    for split in config.eval_splits or ():  # opens them: a wrong name shall not wait for the first measurement
        data.eval_batches(config.data, built.statistics, split=split)
    shapes = abstract_params(config, built)
    hold = lora.hold(config.maps, config.lora, built.layers, shapes)
    tx = make_optimizer(config.optimizer, config.maps, built.layers, hold)
    like = abstract_state(shapes, tx, mesh, config.mesh.min_size, config.maps.anchor_memory)
    _say(_strength_table(config, built, shapes))
    theta0 = initial_params(config, built, _placed(shapes, like.model))
    manager = checkpoint.open_checkpoints(out / "checkpoints", config.keep)
    start = manager.latest_step() or 0
    if start:
        state = checkpoint.restore(
            manager,
            start,
            like,
            lora.split(theta0)[0],
            lambda: init_state(theta0, tx, like),
            anchored=_anchored(config, like),
            anchor_memory=config.maps.anchor_memory,
        )
        _say(f"resumed {out} at step {start} of {config.optimizer.steps}")
    else:
        state = init_state(theta0, tx, like)
    if jax.process_index() == 0:
        _describe_run(out, config, built)
    run = _Run(
        config=config,
        out=out,
        built=built,
        mesh=mesh,
        share=share,
        theta0={} if like.frozen else _parked(theta0, like.params),
        merge=jax.jit(
            functools.partial(lora.merge_lora, lora=config.lora), out_shardings=shardings_of(lora.base(like.model))
        ),
        predict=make_predict(built, mesh),
        layer_metrics=jax.jit(functools.partial(mx.metrics, layers=with_adapters(built.layers))),
        manager=manager,
    )
    train_step = make_train_step(make_loss(built.model), tx, like, mesh, config.seed, config.nan_policy)
    return _loop(run, train_step, state, start)


def _loop(run: _Run, train_step: Callable[..., Any], state: TrainState, start: int) -> Outcome:
    config, steps, accumulate = run.config, run.config.optimizer.steps, run.config.optimizer.accumulate
    batches = _device_batches(run, start * accumulate)
    pending: list[Metrics] = []
    skips = 0  # in a row, before the pending ones
    done, stop = start, None
    name = f"{config.model} {config.maps.method}"
    with (
        interrupts() as request,
        open_log(run.out, start=start, steps=steps, name=name) as log,
        checkpoint.finishing(run.manager),
    ):
        clock = time.perf_counter()
        while done < steps and stop is None:
            for _ in range(accumulate):
                state, metrics = train_step(state, next(batches))
                pending.append(metrics)
                jax.block_until_ready(pending[-1 - AHEAD : -AHEAD])
            done += 1
            log.advance()
            stop = request.ask(together=done % config.log_every == 0)
            ending = done == steps or stop is not None
            if ending or done % config.log_every == 0 or done % config.save_every == 0:
                pending = jax.device_get(pending)
                row = _check_finite(pending, skips, done, run, state)
            if ending or done % config.log_every == 0:
                rate = len(pending) / accumulate / (time.perf_counter() - clock)
                log.scalars(done, {**_summary(pending, state, run, done), "steps_per_second": rate})
                pending, skips, clock = [], row, time.perf_counter()
            if ending or done % config.save_every == 0:
                _save(run, state, done)
            if done % config.eval_every == 0 and not ending:
                if (errors := _measure(run, state.model, request)) is not None:
                    log.scalars(done, _error_scalars(errors))
                clock = time.perf_counter()
        errors = None if stop is not None else _measure(run, state.model, request)
        if errors is None:
            return Outcome(done, request.agreed, {})
        if start < steps:
            log.scalars(done, _error_scalars(errors))
        return Outcome(done, None, errors)


def _device_batches(run: _Run, consumed: int) -> Iterator[Tree]:
    batches = data.train_batches(
        run.config.data, run.built.statistics, seed=run.config.seed, start=consumed, shard=run.share
    )
    for batch in batches:
        yield sharding.put_local(run.built.device_form(batch), run.mesh)


def _check_finite(pending: list[Metrics], skips: int, done: int, run: _Run, state: TrainState) -> int:
    """The batches skipped in a row so far; raises FloatingPointError at the first step that nan_policy ends."""
    config, accumulate = run.config, run.config.optimizer.accumulate
    row, problem = finite.check(pending, skips, config.max_skips, checkpoint.paths(state.params))
    if problem is None:
        return row
    checkpoint.finish(run.manager)
    step = done - len(pending) // accumulate + 1 + problem.batch // accumulate
    advice = "" if config.nan_policy == "skip" else ", or leave such batches out by --nan-policy skip"
    raise FloatingPointError(
        f"{problem.value} at step {step}; {problem.detail}the run stops. The last good checkpoint is "
        f"{run.manager.latest_step()} in {run.out}; lower optimizer.lr or look at the data, and resume{advice}."
    )


def _summary(pending: list[Metrics], state: TrainState, run: _Run, done: int) -> dict[str, float]:
    config, values, updates = run.config, finite.mean(pending), done
    if config.nan_policy == "skip":
        applied = batches_applied(state.opt_state, config.optimizer.accumulate)
        values[finite.SKIPPED] = int(state.step) - applied
        updates = max(applied // config.optimizer.accumulate, 1)
    values["learning_rate"] = float(learning_rate(config.optimizer)(updates - 1))
    if config.maps.method == "maps":
        layers = jax.device_get(run.layer_metrics(state.opt_state))
        values |= {name: float(value) for name, value in layers.items()}
    return values


def _save(run: _Run, state: TrainState, done: int) -> None:
    config, layers = run.config, run.built.layers
    checkpoint.save(run.manager, done, state, anchored=_anchored(config, state))
    lambda_max, schedule = _strength(config)
    if state.frozen:  # what the adapters add, rather than what rounding the frozen weights took
        theta, theta0 = run.merge(state.model), lora.base(state.model)
        slices = lora.held_slices(config.maps, mx.slices(layers, theta, schedule), state.params)
    else:
        theta, theta0 = state.params, run.theta0
        slices = mx.slices(layers, theta, schedule)
    rows = drift(theta, theta0, slices, lambda_max)
    if jax.process_index() == 0:
        write_drift(run.out / "drift.json", rows, label=_label(config, state), step=done)


def _anchored(config: FinetuneConfig, state: TrainState) -> bool:
    """Whether a checkpoint leaves θ0 out: it is in the weights file, which the anchors of adapters are not."""
    return config.maps.method != "adam" and not state.frozen


def _placed(shapes: Tree, like: Tree) -> Tree:
    """Shapes, where `like` says."""
    return jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at.sharding), shapes, like)


def _parked(theta0: Tree, like: Tree) -> Tree:
    """theta0 in host memory, in the shards of the parameters: it is only read when a checkpoint's drift is measured."""
    return jax.device_put(theta0, jax.tree.map(lambda x: x.sharding.with_memory_kind("pinned_host"), like))


def _strength(config: FinetuneConfig) -> tuple[float, str]:
    """lambda_max and schedule in effect: none for adam, the same everywhere for l2_sp."""
    maps = config.maps
    return {
        "maps": (maps.lambda_max, maps.schedule),
        "l2_sp": (maps.lambda_max, "constant"),
        "adam": (0.0, "constant"),
    }[maps.method]


def _strength_table(config: FinetuneConfig, built: Built, shapes: Tree) -> str:
    trained, frozen = lora.split(shapes)
    if config.maps.method == "adam":
        return "plain AdamW: nothing holds the pretrained weights"
    if frozen and lora.holds(config.maps):
        return lora.describe(config.maps, built.layers, shapes)
    return mx.describe(built.layers, trained, *_strength(config))


def _label(config: FinetuneConfig, state: TrainState) -> str:
    maps = config.maps
    if state.frozen and not lora.holds(maps):
        return "LoRA"
    label = {
        "adam": "Adam",
        "maps": f"MAPS, {maps.schedule}, λmax {maps.lambda_max:g}",
        "l2_sp": f"L2-SP, strength {maps.lambda_max:g}",
    }[maps.method]
    return f"LoRA ({maps.adapters}), {label}" if state.frozen else label


def _measure(run: _Run, params: Tree, request: Request) -> dict[str, ActionError] | None:
    """Split -> action error; None where a signal asks to stop on the way."""
    batches = functools.partial(data.eval_batches, run.config.data, run.built.statistics)
    with contextlib.suppress(Interrupted):
        return {
            split: action_error(run.predict, params, request.heeded(batches(split=split)), _unnormalise(run, split))
            for split in run.config.eval_splits or ()
        }
    return None


def _unnormalise(run: _Run, split: str) -> Callable[[np.ndarray], np.ndarray]:
    """Normalised actions of a split -> its data set's units; dimensions of other data sets of the mixture become 0."""
    statistics = run.built.statistics
    own = statistics.of(data.member_of(run.config.data, split)[0].name)
    missing = statistics.action_dim - own.action_dim

    def unnormalise(action: np.ndarray) -> np.ndarray:
        physical = own.unnormalise_action(action[..., : own.action_dim])
        return np.pad(physical, [(0, 0)] * (action.ndim - 1) + [(0, missing)])

    return unnormalise


def _error_scalars(errors: dict[str, ActionError]) -> dict[str, float]:
    return {f"action_l1/{split}": error.l1 for split, error in errors.items()}


def _check_same_run(out: Path, config: FinetuneConfig) -> None:
    """Raises ValueError where `out` holds a run with another config; names the first field that differs."""
    if not (out / "config.json").exists():
        return
    flags.check_flags(out, read_versions(out))
    for name, before, now in differences(read_config(out), config):
        alike = name == "maps.adapters" and {before, now} == {"init", "zero"}  # their anchors, in a checkpoint
        if alike or not name.startswith(MAY_CHANGE):
            raise ValueError(
                f"{out} holds a run with {name}={before!r}, this one has {now!r}; choose another --out, or the same "
                "value."
            )
        _say(f"note: {name} was {before!r}, goes on with {now!r}")


def _describe_run(out: Path, config: FinetuneConfig, built: Built) -> None:
    """What a policy needs beside the checkpoint: config.json with the versions, statistics.json, tokenizer.json."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES} | flags.flags()
    files.write_json(out / "config.json", {**to_dict(config), "versions": versions})
    if (tokenizer := find_tokenizer(config)) is not None:
        shutil.copyfile(tokenizer, out / tokenizer.name)
    files.write_json(out / "statistics.json", json.loads(built.statistics.to_json()))


def _say(text: object) -> None:
    if jax.process_index() == 0:
        print(text, file=sys.stdout, flush=True)
