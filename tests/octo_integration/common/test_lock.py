"""One process at a time: who holds a lock is named, however the holder ends it is released, and nothing is left."""

import errno
import fcntl
import logging
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from octo_integration.common import lock
from tests.octo_integration import child

HOLD = """
import sys, time
from pathlib import Path
from octo_integration.common import lock
with lock.held(Path(sys.argv[1]), Path("runs/x")):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "run" / ".lock"


def test_a_second_holder_is_told_who_holds_it(file):
    me = f"process {os.getpid()} on {socket.gethostname()}"
    with lock.held(file, Path("runs/x")):
        with pytest.raises(
            OSError, match=f"^runs/x is in use by {me}; wait for its end, stop it, or give another --out"
        ):
            with lock.held(file, Path("runs/x")):
                pass
    with lock.held(file, Path("runs/x")):
        pass


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_the_end_of_its_process_releases_it(file, end):
    command = [sys.executable, "-c", HOLD, str(file)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(command, env=child.environment(file.parent), **pipes) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(OSError, match=f"in use by process {process.pid} on "):
            with lock.held(file, Path("runs/x")):
                pass
        process.send_signal(end)
        process.wait(30)
    with lock.held(file, Path("runs/x")):
        assert file.read_text().split()[1] == str(os.getpid())


def test_it_removes_what_it_made_and_nothing_else(tmp_path, file):
    with lock.held(file, tmp_path):
        assert file.is_file()
    assert not file.parent.exists() and tmp_path.is_dir()
    with lock.held(file, tmp_path):
        (file.parent / "kept").touch()
    assert [path.name for path in file.parent.iterdir()] == ["kept"]
    file.parent.joinpath("kept").unlink()
    with lock.held(file, tmp_path):
        pass
    assert file.parent.is_dir()  # it was there before


def test_a_lock_that_its_holder_removes_while_another_asks_is_made_anew(file, monkeypatch):
    flock = fcntl.flock

    def late(handle: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        file.unlink()
        flock(handle, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with lock.held(file, Path("runs/x")):
        with pytest.raises(OSError, match="in use by"):  # of the file that is there, not of the one that is gone
            with lock.held(file, Path("runs/x")):
                pass


def test_where_nothing_can_be_locked_a_warning_says_so(file, monkeypatch, caplog):
    def refuse(handle: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with caplog.at_level(logging.WARNING), lock.held(file, Path("runs/x")):
        pass
    assert caplog.messages == [
        "runs/x cannot be locked here (No locks available): see to it that no other process writes there."
    ]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="^cannot write runs/x: Not a directory; give a place that may be written"):
        with lock.held(tmp_path / "file" / "run" / ".lock", Path("runs/x")):
            pass
