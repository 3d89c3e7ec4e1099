"""Fine-tuning from start, or from where it stopped, to the end: `finetune(config)`."""

import contextlib
import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax

import maps_optax as mx
from octo_integration.common.paths import refuse_schemes
from octo_integration.config import FinetuneConfig
from octo_integration.evaluate.action_error import ActionError, action_error
from octo_integration.evaluate.drift import drift, write_drift
from octo_integration.logs.run_log import openers
from octo_integration.model.adapters import with_adapters
from octo_integration.processes import claim, distributed, lifeline
from octo_integration.processes.interrupts import Interrupted, Request
from octo_integration.state import lora
from octo_integration.state.train_state import TrainState
from octo_integration.train import defaults, session
from octo_integration.train.assemble import Job, assemble
from octo_integration.train.report import make_report
from octo_integration.train.run_directory import check_same_run, describe_run, read_start, started
from octo_integration.train.session import Session, say

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
    openers(config.log)  # a package that is missing shall not wait
    distributed.start(config.mesh)
    out = Path(config.out)
    with lifeline.together(out), claim.held(out):
        config = defaults.of_run(config, out)
        for note in check_same_run(out, config):
            say(note)
        job = assemble(config)
        config = dataclasses.replace(config, eval_splits=tuple(job.splits))
        say(f"measures the action error on: {', '.join(job.splits) or 'nothing; give --eval-splits'}")
        say(job.hold.table)
        origin = read_start(config, lora.base(job.like.model), out)
        for line in started(origin):
            say(line)
        errors: dict[str, ActionError] = {}
        run = _session(job, out, config, errors)
        begun = session.begin(run, out)
        if jax.process_index() == 0:
            describe_run(out, config, job.built.statistics, origin)
        ended = session.go(run, out, begun)
        return Outcome(ended.step, ended.signal, {} if ended.signal is not None else errors)


def _session(job: Job, out: Path, config: FinetuneConfig, errors: dict[str, ActionError]) -> Session:
    """All that the loop is to know of a job; what is measured is put into `errors`, too."""
    hold, cadence = job.hold, job.cadence

    def saved(state: TrainState, done: int, theta0: Tree) -> None:
        if state.frozen:  # what the adapters add, rather than what rounding the frozen weights took
            rows = drift(job.merge(state.model), lora.base(state.model), hold.slices, hold.lambda_max)
        else:
            rows = drift(state.params, theta0, hold.slices, hold.lambda_max)
        if jax.process_index() == 0:
            write_drift(out / "drift.json", rows, label=hold.label, step=done)

    def measure(params: Tree, request: Request) -> dict[str, float] | None:
        errors.clear()
        with contextlib.suppress(Interrupted):
            for name, split in job.splits.items():
                batches = request.heeded(split.batches())
                errors[name] = action_error(job.predict, params, batches, split.unnormalise)
            return {f"action_l1/{split}": error.l1 for split, error in errors.items()}
        return None

    layers = functools.partial(mx.metrics, layers=with_adapters(job.built.layers))
    of_layers = jax.jit(layers) if hold.measured else None
    skipping = "" if job.patience else ", or leave such batches out by --nan-policy skip"
    return Session(
        name=job.name,
        like=job.like,
        theta0=job.theta0,
        start=job.start,
        init=job.init,
        step=job.step,
        batches=lambda consumed: map(job.place, job.read(consumed)),
        report=lambda theta0: make_report(job.rate, cadence.accumulate, job.patience > 0, of_layers, say),
        saved=saved,
        measure=measure,
        cadence=cadence,
        keep=config.keep,
        patience=job.patience,
        anchored=hold.anchored,
        anchor_memory=hold.anchor_memory,
        may_change=True,
        advice=f"lower optimizer.lr or look at the data, and resume{skipping}",
        loggers=openers(config.log),
    )
