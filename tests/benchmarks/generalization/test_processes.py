import json
import os
import signal
import time

import pytest

from benchmarks.generalization.processes import CPU, write_lines


def work(job):
    """A record; "stop" asks the parent to stop, "die" kills the process, "fail" raises."""
    if job == "stop":
        os.kill(os.getppid(), signal.SIGTERM)
        time.sleep(0.5)
    if job == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if job == "fail":
        raise ValueError("no such thing")
    return [{"job": job, "heap": os.environ["MALLOC_ARENA_MAX"]}]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def path(tmp_path, monkeypatch):
    for name in CPU:  # so that it is as before after the test
        monkeypatch.setenv(name, os.environ.get(name, ""))
    return tmp_path / "results.jsonl"


def test_every_job_is_a_line_that_says_where_it_is_from(path):
    write_lines(work, ["a", "b", "c"], path, workers=2, label="test", environment=CPU)
    found = lines(path)
    assert {line["job"] for line in found} == {"a", "b", "c"} and {line["heap"] for line in found} == {"1"}
    assert all(line["commit"] and "cores" in line["machine"] for line in found)


def test_a_signal_lets_what_is_under_way_end_and_keeps_it(path, capsys):
    with pytest.raises(SystemExit) as caught:
        write_lines(work, ["a", "stop", "never", "never"], path, workers=1, label="test", environment=CPU)
    assert caught.value.code == 128 + signal.SIGTERM
    assert [line["job"] for line in lines(path)] == ["a", "stop"]
    assert "2 runs to go; the same command goes on" in capsys.readouterr().out


def test_what_goes_wrong_in_a_process_is_an_error_here(path):
    with pytest.raises(ChildProcessError, match="a process died"):
        write_lines(work, ["a", "die"], path, workers=1, label="test", environment=CPU)
    with pytest.raises(ValueError, match="no such thing"):
        write_lines(work, ["fail"], path, workers=1, label="test", environment=CPU)
    assert [line["job"] for line in lines(path)] == ["a"]
