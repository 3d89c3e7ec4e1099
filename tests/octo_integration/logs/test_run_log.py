"""A run's loggers: each is an entry of the table, is told of all, and is closed; only the first process has any."""

import contextlib
import json

import jax
import pytest

from octo_integration.logs import run_log
from octo_integration.logs.common import Logger, Run


def test_a_logger_is_an_entry(tmp_path, monkeypatch):
    told = []

    class Mine(Logger):
        def scalars(self, step, values):
            told.append((step, values))

    @contextlib.contextmanager
    def opened(run: Run):
        told.append(run)
        yield Mine()
        told.append("closed")

    monkeypatch.setattr(run_log, "LOGGERS", (*run_log.LOGGERS, opened))
    with run_log.open_log(tmp_path, start=2, steps=4, name="toy") as log:
        log.advance()
        log.scalars(3, {"loss": 0.5})
    assert told == [Run(tmp_path, "toy", 2, 4), (3, {"loss": 0.5}), "closed"]
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 3, "loss": 0.5}
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 1


def test_another_process_is_silent_and_counts_all_the_same(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with run_log.open_log(tmp_path, start=0, steps=2, name="toy") as log:
        log.advance()
        log.scalars(1, {"loss": 0.5})
    assert not list(tmp_path.iterdir()) and capfd.readouterr().err == ""


@pytest.mark.parametrize("steps", [2, 4])
def test_lines_behind_the_step_that_a_run_goes_on_from_are_dropped(tmp_path, steps):
    lines = [json.dumps({"step": step}) for step in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 4, "lo']))
    with run_log.open_log(tmp_path, start=2, steps=steps, name="toy"):
        pass
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == lines[:2]
    assert bool(list(tmp_path.glob("events*"))) == (steps > 2)  # a finished run has none to add


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(OSError, match=r"metrics\.jsonl"):
        with run_log.open_log(tmp_path, start=0, steps=1, name="toy"):
            pass
