"""The loop, for any model: steps, and what is done between them."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from octo_integration.logs.run_log import RunLog
from octo_integration.processes.interrupts import Request
from octo_integration.train.step import Metrics

Tree = Any
# Steps that are dispatched while the device works on another one: enough to keep it busy, and few to wait for when a
# signal asks to stop.
AHEAD = 1


class Cadence(NamedTuple):
    """How long, and how often.

    Attributes:
      steps: optimizer steps of the whole run.
      accumulate: batches of each.
      log_every, eval_every, save_every: steps between two of a kind; logged and saved is also at the end.
    """

    steps: int
    accumulate: int
    log_every: int
    eval_every: int
    save_every: int


class Between(NamedTuple):
    """What is done between steps, of which `done` are.

    Attributes:
      check: (metrics of the batches since the last report, on the host; batches skipped in a row before them; state;
        done) -> batches skipped in a row at their end. Raises FloatingPointError where the run may not go on.
      report: (those metrics, state, done) -> what is logged.
      save: (state, done); keeps the state.
      measure: state -> what an evaluation found; None where it was interrupted.
    """

    check: Callable[[list[Metrics], int, Tree, int], int]
    report: Callable[[list[Metrics], Tree, int], dict[str, float]]
    save: Callable[[Tree, int], None]
    measure: Callable[[Tree], dict[str, float] | None]


def take_steps(
    state: Tree,
    step: Callable[[Tree, Tree], tuple[Tree, Metrics]],
    batches: Iterator[Tree],
    cadence: Cadence,
    between: Between,
    *,
    start: int,
    request: Request,
    log: RunLog,
) -> tuple[Tree, int, int | None]:
    """Steps from `start` to the end, or until a signal asks to stop; the last one is saved.

    The last evaluation is left to the caller.

    Args:
      step: (state, which it may donate; batch) -> (state, metrics on the device).

    Returns:
      (state, steps done, the signal or None).
    """
    pending: list[Metrics] = []
    skips = 0  # in a row, before the pending ones
    done, stop = start, None
    clock = time.perf_counter()
    while done < cadence.steps and stop is None:
        for _ in range(cadence.accumulate):
            with request.unheeded() if done == start else contextlib.nullcontext():  # compiles
                state, metrics = step(state, next(batches))
            pending.append(metrics)
            jax.block_until_ready(pending[-1 - AHEAD : -AHEAD])
        done += 1
        log.advance()
        logs, saves, measures = (
            done % every == 0 for every in (cadence.log_every, cadence.save_every, cadence.eval_every)
        )
        stop = request.ask(together=logs)
        ending = done == cadence.steps or stop is not None
        if ending or logs or saves:
            pending = jax.device_get(pending)
            row = between.check(pending, skips, state, done)
        if ending or logs:
            rate = len(pending) / cadence.accumulate / (time.perf_counter() - clock)
            log.scalars(done, {**between.report(pending, state, done), "steps_per_second": rate})
            pending, skips, clock = [], row, time.perf_counter()
        if ending or saves:
            between.save(state, done)
        if measures and not ending:
            if (found := between.measure(state)) is not None:
                log.scalars(done, found)
            clock = time.perf_counter()
    return state, done, stop
