"""What a run tells while it runs: progress bar, metrics.jsonl and TensorBoard scalars; process 0 only."""

import contextlib
import dataclasses
import errno
import json
import os
import socket
import struct
import sys
import time
from collections.abc import Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

import jax

from octo_integration.common.files import replacing
from octo_integration.logs import progress

LINES, EVENTS = "metrics.jsonl", "events.out.tfevents"


@dataclasses.dataclass(frozen=True)
class RunLog:
    """The open outputs of one run, made by `open_log`; those that are None are not written."""

    bar: Any
    lines: FileIO | None
    events: FileIO | None

    def advance(self) -> None:
        """One step done (nothing is fetched from the device)."""
        progress.advance(self.bar)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Logs host scalars of `step` to both files; a name's slashes group it in TensorBoard.

        Raises:
          OSError: they could not be written (full disk, say).
        """
        if self.lines is not None:
            _append(self.lines, (json.dumps({"step": step, **values}) + "\n").encode())
        if self.events is not None and values:
            _append(self.events, _event_records(step, values))
        if "loss" in values:
            self.bar.set_postfix(loss=f"{values['loss']:.4f}", refresh=False)


@contextlib.contextmanager
def open_log(out: Path, *, start: int, steps: int, name: str) -> Iterator[RunLog]:
    """Opens the progress bar, `metrics.jsonl` and TensorBoard events of a run; all processes but the first are silent.

    Lines of `metrics.jsonl` behind the step that the run resumes from are dropped, so each step is there once, however
    often the run was interrupted.

    Args:
      out: run directory.
      start: steps done already.
      steps: steps of the whole run.
      name: shown before the bar.
    """
    silent = jax.process_index() != 0
    # A log file gets a line now and then, a terminal a living bar.
    interval = 0.1 if sys.stderr.isatty() else 15.0
    opened = progress.open_bar(name, start, steps, mininterval=interval, disable=silent)
    with opened as bar, contextlib.ExitStack() as stack:
        lines = events = None
        if not silent:
            _keep_lines(out / LINES, start)
            lines = stack.enter_context(_open(out / LINES))
        if not silent and start < steps:  # a finished run has no events to add
            events = stack.enter_context(_open(out / f"{EVENTS}.{int(time.time())}.{socket.gethostname()}"))
            _append(events, _event_records(0, {}))
        yield RunLog(bar, lines, events)


@contextlib.contextmanager
def _told(path: object) -> Iterator[None]:
    """Makes an OSError one that names the file, as writing does not."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"cannot write {path}: {error.strerror or error}; make room, or give a folder that may be written. The "
            "same command resumes the run."
        ) from None


def _open(path: Path) -> FileIO:
    """Unbuffered, so that what a full disk has refused is not written again when the file is closed."""
    with _told(path):
        return FileIO(path, "a")


def _append(file: FileIO, data: bytes) -> None:
    with _told(file.name):
        if file.write(data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _event_records(step: int, values: Mapping[str, float]) -> bytes:
    """Records of TensorBoard's file, for no values its first one.

    Not by a SummaryWriter: of a full disk its thread dies, and the run then waits for it without end.
    """
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c
    from tensorboardX.summary import scalar

    now = time.time()
    events = [Event(wall_time=now, step=step, summary=scalar(name, value)) for name, value in values.items()]
    records = []
    for event in events or [Event(wall_time=now, file_version="brain.Event:2")]:
        data = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        records += [length, struct.pack("<I", masked_crc32c(length)), data, struct.pack("<I", masked_crc32c(data))]
    return b"".join(records)


def _keep_lines(path: Path, last: int) -> None:
    """Drops the lines of steps after `last`, and a line that a kill cut short."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(errors="replace").splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            if json.loads(line)["step"] <= last:
                kept.append(line + "\n")
    with replacing(path) as temporary:
        temporary.write_text("".join(kept))
