"""Fine-tuning from start, or from where it stopped, to the end: `finetune(config)`."""

import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

import maps_optax as mx
from octo_integration.common.paths import refuse_schemes
from octo_integration.config import FinetuneConfig
from octo_integration.evaluate.action_error import ActionError, action_error
from octo_integration.evaluate.drift import drift, write_drift
from octo_integration.logs.run_log import open_log
from octo_integration.processes import claim, distributed, lifeline
from octo_integration.processes.interrupts import Interrupted, Request, interrupts
from octo_integration.state import checkpoint, lora, sharding
from octo_integration.state.train_state import TrainState, shardings_of
from octo_integration.train import defaults, finite
from octo_integration.train.assemble import Job, assemble
from octo_integration.train.fit import Between, fit
from octo_integration.train.report import make_report
from octo_integration.train.run_directory import check_same_run, describe_run, read_start, started
from octo_integration.train.step import Metrics

Tree = Any


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
        config = defaults.of_run(config, out)
        for note in check_same_run(out, config):
            _say(note)
        job = assemble(config)
        config = dataclasses.replace(config, eval_splits=tuple(job.splits))
        _say(f"measures the action error on: {', '.join(job.splits) or 'nothing; give --eval-splits'}")
        _say(job.hold.table)
        origin = read_start(config, lora.base(job.like.model), out)
        for line in started(origin):
            _say(line)
        manager, start, state, theta0 = _begin(job, out, config.keep)
        if jax.process_index() == 0:
            describe_run(out, config, job.built.statistics, origin)
        return _run(job, out, manager, start, state, theta0)


def _begin(job: Job, out: Path, keep: int) -> tuple[ocp.CheckpointManager, int, TrainState, Tree]:
    """(checkpoints, steps done, state, theta0 for the drift: in the host's memory, so that the devices' is free of it).

    With adapters it is empty: the frozen parameters of the state are theta0.
    """
    theta0 = job.theta0()

    def fresh() -> TrainState:
        state = job.init(theta0 if job.start is None else job.start())
        if job.start is None or not job.hold.anchored:
            return state
        moved = state._replace(opt_state=mx.set_anchor(state.opt_state, theta0))
        return jax.device_put(moved, shardings_of(job.like))

    manager = checkpoint.open_checkpoints(out / "checkpoints", keep)
    start = manager.latest_step() or 0
    if start:
        state = checkpoint.restore(
            manager,
            start,
            job.like,
            lora.split(theta0)[0],
            fresh,
            anchored=job.hold.anchored,
            anchor_memory=job.hold.anchor_memory,
        )
        _say(f"resumed {out} at step {start} of {job.cadence.steps}")
    else:
        state = fresh()
    if job.like.frozen:
        return manager, start, state, {}
    parked = jax.tree.map(lambda x: sharding.on_host(x.sharding), job.like.params)
    return manager, start, state, jax.device_put(theta0, parked, may_alias=False)  # the step takes the state's buffers


def _run(job: Job, out: Path, manager: ocp.CheckpointManager, start: int, state: TrainState, theta0: Tree) -> Outcome:
    hold, cadence = job.hold, job.cadence

    def check(pending: list[Metrics], skips: int, state: TrainState, done: int) -> int:
        row, problem = finite.check(pending, skips, job.patience, checkpoint.paths(state.params))
        if problem is None:
            return row
        checkpoint.finish(manager)
        step = done - len(pending) // cadence.accumulate + 1 + problem.batch // cadence.accumulate
        advice = "" if job.patience else ", or leave such batches out by --nan-policy skip"
        raise FloatingPointError(
            f"{problem.value} at step {step}; {problem.detail}the run stops. The last good checkpoint is "
            f"{manager.latest_step()} in {out}; lower optimizer.lr or look at the data, and resume{advice}."
        )

    def save(state: TrainState, done: int) -> None:
        checkpoint.save(manager, done, state, anchored=hold.anchored)
        if state.frozen:  # what the adapters add, rather than what rounding the frozen weights took
            rows = drift(job.merge(state.model), lora.base(state.model), hold.slices, hold.lambda_max)
        else:
            rows = drift(state.params, theta0, hold.slices, hold.lambda_max)
        if jax.process_index() == 0:
            write_drift(out / "drift.json", rows, label=hold.label, step=done)

    def measure(state: TrainState) -> dict[str, float] | None:
        errors = _measure(job, state.model, request)
        return None if errors is None else _scalars(errors)

    layers = job.built.layers if hold.measured else None
    report = make_report(job.rate, cadence.accumulate, job.patience > 0, layers, _say)
    with (
        interrupts() as request,
        open_log(out, start=start, steps=cadence.steps, name=job.name) as log,
        checkpoint.finishing(manager),
    ):
        batches, between = _batches(job, start * cadence.accumulate), Between(check, report, save, measure)
        state, done, stop = fit(state, job.step, batches, cadence, between, start=start, request=request, log=log)
        errors = None if stop is not None else _measure(job, state.model, request)
        if errors is None:
            return Outcome(done, request.agreed, {})
        if start < cadence.steps:
            log.scalars(done, _scalars(errors))
        return Outcome(done, None, errors)


def _batches(job: Job, consumed: int) -> Iterator[Tree]:
    """Those on the devices from number `consumed` on; opened with the first one, which a finished run does not take."""
    yield from map(job.place, job.read(consumed))


def _measure(job: Job, params: Tree, request: Request) -> dict[str, ActionError] | None:
    """Split -> action error; None where a signal asks to stop on the way."""
    with contextlib.suppress(Interrupted):
        return {
            name: action_error(job.predict, params, request.heeded(split.batches()), split.unnormalise)
            for name, split in job.splits.items()
        }
    return None


def _scalars(errors: dict[str, ActionError]) -> dict[str, float]:
    return {f"action_l1/{split}": error.l1 for split, error in errors.items()}


def _say(text: object) -> None:
    if jax.process_index() == 0:
        print(text, file=sys.stdout, flush=True)
