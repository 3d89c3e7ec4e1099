"""The loop, without a model: what is done between steps, when, and with what."""

import contextlib
import signal

import jax.numpy as jnp
import pytest

from octo_integration.processes.interrupts import Request, interrupts
from octo_integration.train.steps import Between, Cadence, take_steps


class Log(list):
    """Steps done so far, and what was logged when."""

    steps = 0

    def advance(self) -> None:
        self.steps += 1

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self.append((step, {name: value for name, value in values.items() if name != "steps_per_second"}))


def run(cadence: Cadence, start: int = 0, stop: int | None = None, skips=lambda pending, before: before):
    """(state, steps done, signal), what was logged and everything that was called; a batch is its number."""
    calls, log, request = [], Log(), Request()

    def step(state, batch):
        if batch == stop:
            request.signal = 15
        return [*state, batch], {"loss": jnp.asarray(float(batch))}

    def check(pending, before, state, done):
        row = skips([float(values["loss"]) for values in pending], before)
        calls.append(("check", done, len(pending), before))
        return row

    between = Between(
        check=check,
        report=lambda pending, state, done: {"sum": sum(float(values["loss"]) for values in pending)},
        save=lambda state, done: calls.append(("save", done, list(state))),
        measure=lambda state: {"error": float(len(state))},
    )
    batches = iter(range(start * cadence.accumulate, 100))
    return take_steps([], step, batches, cadence, between, start=start, request=request, log=log), log, calls


CADENCE = Cadence(steps=6, accumulate=1, log_every=2, eval_every=3, save_every=4)


def test_each_kind_comes_at_its_own_steps_and_the_last_is_logged_and_saved() -> None:
    (state, done, signal), log, calls = run(CADENCE)
    assert (state, done, signal, log.steps) == ([0, 1, 2, 3, 4, 5], 6, None, 6)
    # The evaluation of the last step is the caller's.
    assert log == [(2, {"sum": 1.0}), (3, {"error": 3.0}), (4, {"sum": 5.0}), (6, {"sum": 9.0})]
    assert [call for call in calls if call[0] == "save"] == [("save", 4, [0, 1, 2, 3]), ("save", 6, state)]


def test_it_goes_on_where_it_stopped() -> None:
    (state, done, _), log, _ = run(CADENCE, start=4)
    assert (state, done, log) == ([4, 5], 6, [(6, {"sum": 9.0})])


def test_a_finished_run_takes_no_batch() -> None:
    assert run(CADENCE, start=6) == (([], 6, None), [], [])


def test_a_step_has_as_many_batches_as_are_accumulated() -> None:
    (state, done, _), log, calls = run(Cadence(2, 3, log_every=1, eval_every=9, save_every=9))
    assert (len(state), done, log) == (6, 2, [(1, {"sum": 3.0}), (2, {"sum": 12.0})])
    assert [call for call in calls if call[0] == "check"] == [("check", 1, 3, 0), ("check", 2, 3, 0)]


def test_a_signal_ends_it_after_the_step_logged_and_saved() -> None:
    (state, done, signal), log, calls = run(CADENCE, stop=2)
    assert (state, done, signal) == ([0, 1, 2], 3, 15)
    assert log == [(2, {"sum": 1.0}), (3, {"sum": 2.0})] and calls[-1] == ("save", 3, state)


class Usual(Exception):
    """What a signal usually does."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("first", "ends"), [(2, None), (0, 3)])
def test_until_the_first_step_is_done_a_signal_acts_as_usual(number: int, first: int, ends: int | None):
    """Nothing is lost yet, also where a run is resumed; and Python would heed it only once XLA has compiled."""

    def act(*_):
        raise Usual

    def step(state, batch):
        if batch == 2:
            signal.raise_signal(number)
        return state, {"loss": jnp.zeros(())}

    between = Between(lambda *_: 0, lambda *_: {}, lambda *_: None, lambda state: None)
    usual = signal.signal(number, act)
    try:
        with interrupts() as request:
            usually = contextlib.nullcontext() if ends else pytest.raises(Usual)
            with usually:
                batches = iter(range(first, 9))
                found = take_steps((), step, batches, CADENCE, between, start=first, request=request, log=Log())
                assert found == ((), ends, number)
        assert signal.getsignal(number) == act
    finally:
        signal.signal(number, usual)


def test_skips_are_counted_from_report_to_report_and_a_check_at_a_save_counts_none_twice() -> None:
    cadence = Cadence(steps=4, accumulate=1, log_every=2, eval_every=9, save_every=1)
    _, _, calls = run(cadence, skips=lambda pending, before: before + len(pending))
    assert [call[1:] for call in calls if call[0] == "check"] == [(1, 1, 0), (2, 2, 0), (3, 1, 2), (4, 2, 2)]


def test_what_may_not_go_on_is_neither_logged_nor_saved() -> None:
    def refuse(pending, before):
        raise FloatingPointError("loss is nan at step 2")

    with pytest.raises(FloatingPointError, match="at step 2"):
        run(CADENCE, skips=refuse)


def test_an_evaluation_that_was_interrupted_is_not_logged() -> None:
    log = Log()
    between = Between(lambda *_: 0, lambda *_: {}, lambda *_: None, measure=lambda state: None)
    cadence = Cadence(steps=2, accumulate=1, log_every=9, eval_every=1, save_every=9)
    take_steps(
        0,
        lambda s, b: (s, {"loss": jnp.zeros(())}),
        iter(range(9)),
        cadence,
        between,
        start=0,
        request=Request(),
        log=log,
    )
    assert [step for step, _ in log] == [2]
