"""A run from its start, or from where it stopped, to its end, whatever is trained: `begin`, then `go`.

`maps-vla finetune` and `fit` are two makers of a `Session`; all that a run does is here and in `steps`.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

import maps_optax as mx
from octo_integration.logs.common import Opener
from octo_integration.logs.run_log import open_log
from octo_integration.processes.interrupts import Request, interrupts
from octo_integration.state import checkpoint, lora, sharding
from octo_integration.state.train_state import TrainState, shardings_of
from octo_integration.train import finite
from octo_integration.train.report import Report
from octo_integration.train.step import Metrics
from octo_integration.train.steps import Between, Cadence, take_steps

Tree = Any


class Session(NamedTuple):
    """What a run does; nothing of it is in the devices' memory yet.

    Attributes:
      name: for the progress bar.
      like: the state as shapes with shardings.
      theta0: gives the parameters that the weights are held near, placed as those of `like`.
      start: gives those that training starts from; None: they are theta0.
      init: parameters to start from -> the state of step 0.
      step: (state, which it donates; batch) -> (state, metrics on the device).
      batches: n -> the batches from number n on, on the devices.
      report: theta0 -> what makes a line of the log.
      saved: what is done beside a checkpoint: (state, steps done, theta0).
      measure: all parameters -> what an evaluation found; None where it was interrupted.
      cadence: how long, and how often.
      keep: checkpoints that are kept.
      patience: batches skipped in a row that end the run; 0: none is skipped.
      anchored: the optimizer state holds theta0, which a checkpoint leaves out.
      anchor_memory: where it is kept, as of `Hold`.
      may_change: a run may go on under another method (see `checkpoint.restore`).
      advice: what helps where the loss is not finite.
      loggers: beside those that every run has.
    """

    name: str
    like: TrainState
    theta0: Callable[[], Tree]
    start: Callable[[], Tree] | None
    init: Callable[[Tree], TrainState]
    step: Callable[[TrainState, Tree], tuple[TrainState, Metrics]]
    batches: Callable[[int], Iterator[Tree]]
    report: Callable[[Tree], Report]
    saved: Callable[[TrainState, int, Tree], None]
    measure: Callable[[Tree, Request], dict[str, float] | None]
    cadence: Cadence
    keep: int
    patience: int = 0
    anchored: bool = False
    anchor_memory: str = "device"
    may_change: bool = False
    advice: str = "lower the learning rate or look at the data, and call it again"
    loggers: Sequence[Opener] = ()


class Begun(NamedTuple):
    """Where a run is.

    Attributes:
      manager: its checkpoints.
      start: steps done.
      state: at that step.
      theta0: of the drift, in the host's memory, so that the devices' is free of it. With adapters it is empty: the
        frozen parameters of the state are theta0.
    """

    manager: ocp.CheckpointManager
    start: int
    state: TrainState
    theta0: Tree


class Ended(NamedTuple):
    """How a run ended: its state, the steps done, all of them saved, and the signal that ended it early or None."""

    state: TrainState
    step: int
    signal: int | None


def begin(session: Session, out: Path) -> Begun:
    """The state of step 0, or of the latest checkpoint in `out`.

    Raises:
      ValueError: the checkpoint does not fit; names the first leaf.
    """
    theta0, like = session.theta0(), session.like

    def fresh() -> TrainState:
        state = session.init(theta0 if session.start is None else session.start())
        if session.start is None or not session.anchored:
            return state
        moved = state._replace(opt_state=mx.set_anchor(state.opt_state, theta0))
        return jax.device_put(moved, shardings_of(like))

    manager = checkpoint.open_checkpoints(out / "checkpoints", session.keep)
    start = manager.latest_step() or 0
    if start:
        state = checkpoint.restore(
            manager,
            start,
            like,
            lora.split(theta0)[0] if like.frozen else theta0,
            fresh if session.may_change else None,
            anchored=session.anchored,
            anchor_memory=session.anchor_memory,
        )
        say(f"resumed {out} at step {start} of {session.cadence.steps}")
    else:
        state = fresh()
    if like.frozen:
        return Begun(manager, start, state, {})
    parked = jax.tree.map(lambda x: sharding.on_host(x.sharding), like.params)
    # A copy, as the step takes the state's buffers.
    return Begun(manager, start, state, jax.device_put(theta0, parked, may_alias=False))


def go(session: Session, out: Path, begun: Begun) -> Ended:
    """The steps that are left, logged, saved and measured; SIGTERM and SIGINT end them after saving.

    Raises:
      FloatingPointError: loss or gradient became NaN or inf; names the step.
      OSError: a checkpoint could not be written.
    """
    manager, start, state, theta0 = begun
    cadence = session.cadence

    def check(pending: list[Metrics], skips: int, state: TrainState, done: int) -> int:
        row, problem = finite.check(pending, skips, session.patience, checkpoint.paths(state.params))
        if problem is None:
            return row
        checkpoint.finish(manager)
        step = done - len(pending) // cadence.accumulate + 1 + problem.batch // cadence.accumulate
        raise FloatingPointError(
            f"{problem.value} at step {step}; {problem.detail}the run stops. The last good checkpoint is "
            f"{manager.latest_step()} in {out}; {session.advice}."
        )

    def save(state: TrainState, done: int) -> None:
        checkpoint.save(manager, done, state, anchored=session.anchored)
        session.saved(state, done, theta0)

    with (
        interrupts() as request,
        open_log(out, start=start, steps=cadence.steps, name=session.name, more=session.loggers) as log,
        checkpoint.finishing(manager),
    ):
        between = Between(check, session.report(theta0), save, lambda state: session.measure(state.model, request))
        batches = _opened(session, start * cadence.accumulate)
        state, done, stop = take_steps(
            state, session.step, batches, cadence, between, start=start, request=request, log=log
        )
        found = None if stop is not None else session.measure(state.model, request)
        if found is None:
            return Ended(state, done, request.agreed)
        if found and start < cadence.steps:
            log.scalars(done, found)
        return Ended(state, done, None)


def say(text: object) -> None:
    """A line, by the first process."""
    if jax.process_index() == 0:
        print(text, file=sys.stdout, flush=True)


def _opened(session: Session, consumed: int) -> Iterator[Tree]:
    """From number `consumed` on; opened with the first one, which a finished run does not take."""
    yield from session.batches(consumed)
