"""A signal ends a collection in the middle of its steps, not when its episodes have ended."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from octo_integration.cli.commands import main
from octo_integration.collect import resume
from tests.octo_integration.collect.test_resume import episodes

STARTING, STOPPING = 600, 300  # seconds on a busy machine; a step takes an hour


def words(out: Path) -> list[str]:
    """Of one task's episodes, then of one whose first step takes an hour."""
    simulator = ("--simulator", "tests.octo_integration.toy.stuck:SIMULATOR", "--noise", "0.1")
    sizes = ("--episodes-per-task", "2", "--heldout-per-task", "1", "--image-size", "8")
    return ["collect", "--out", str(out), *simulator, *sizes]


@pytest.mark.parametrize(
    ("stop", "code"),
    [
        (lambda process: process.terminate(), 128 + signal.SIGTERM),
        (lambda process: os.killpg(process.pid, signal.SIGINT), 130),  # a terminal tells the whole group
    ],
)
def test_a_signal_does_not_wait_for_episodes(
    stop: Callable[[subprocess.Popen[str]], None], code: int, tmp_path: Path
) -> None:
    out = tmp_path / "a"
    process = subprocess.Popen(
        [sys.executable, "-m", "octo_integration.cli.commands", *words(out)],
        env={**os.environ, "STUCK": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        until = time.monotonic() + STARTING
        while len(list((tmp_path / ".a.parts").glob("[0-9]*.json"))) < 3:
            assert process.poll() is None and time.monotonic() < until, process.communicate()
            time.sleep(0.1)
        stop(process)
        said, complained = process.communicate(timeout=STOPPING)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == code and "Traceback" not in complained, complained
    assert "3 recorded episodes are kept in" in said and "the same command goes on" in said
    assert [path.name for path in tmp_path.iterdir()] == [".a.parts"]
    kept = sorted(path.name for path in (tmp_path / ".a.parts").iterdir())
    assert len(kept) == 4 and all(resume.read(tmp_path / ".a.parts" / name) for name in kept)
    assert main(words(out)) == 0  # goes on
    assert main(words(tmp_path / "b")) == 0
    np.testing.assert_equal(episodes(out), episodes(tmp_path / "b"))
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # no worker is left
