"""The bar of a run, with a clock of its own."""

import io
from pathlib import Path

import pytest

from octo_integration.logs import progress
from octo_integration.logs.common import Run


@pytest.fixture
def bar():
    """A bar from step 100 of 600, with `bar.advance()` of its logger and `bar.pass_time(seconds)`."""
    shown, now = io.StringIO(), [0.0]
    with progress.opened(Run(Path(), "tiny maps", 100, 600), file=shown, mininterval=0, ncols=100) as logger:
        bar = logger._bar
        bar.advance = logger.advance
        bar._time = lambda: now[0]
        bar.start_t = bar.last_print_t = 0.0
        bar.shown = shown

        def pass_time(seconds: float) -> None:
            now[0] += seconds

        bar.pass_time = pass_time
        yield bar


def test_the_first_step_is_compiled_until_it_is_done(bar):
    assert bar.shown.getvalue().split("\r")[-1].rstrip() == "tiny maps: compiling the first step …"
    bar.advance()
    assert "101/600" in bar.shown.getvalue().split("\r")[-1]


def test_the_time_to_go_leaves_the_compilation_out(bar):
    bar.pass_time(500)
    bar.advance()
    for _ in range(9):
        bar.pass_time(2)
        bar.advance()
    assert bar.n == 110
    assert bar.format_dict["elapsed"] == 18
    assert bar.format_dict["rate"] == pytest.approx(0.5)
    assert "<16:20" in bar.shown.getvalue().split("\r")[-1]  # 490 steps of 2 seconds


def test_a_run_that_is_done_compiles_no_step():
    shown = io.StringIO()
    with progress.opened(Run(Path(), "tiny maps", 600, 600), file=shown):
        pass
    assert "compiling" not in shown.getvalue() and "600/600" in shown.getvalue()
