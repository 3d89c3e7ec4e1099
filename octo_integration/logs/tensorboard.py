"""TensorBoard's events."""

import contextlib
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping

from octo_integration.logs.common import Logger, Run, appending

FILE = "events.out.tfevents"


class Events(Logger):
    """Adds to the open file."""

    def __init__(self, append: Callable[[bytes], None]) -> None:
        """Keeps what adds to it."""
        self._append = append

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """A point of each."""
        if values:
            self._append(_records(step, values))


@contextlib.contextmanager
def opened(run: Run) -> Iterator[Logger]:
    """A finished run has no events to add."""
    if run.start >= run.steps:
        yield Logger()
        return
    with appending(run.out / f"{FILE}.{int(time.time())}.{socket.gethostname()}") as append:
        append(_records(0, {}))
        yield Events(append)


def _records(step: int, values: Mapping[str, float]) -> bytes:
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
