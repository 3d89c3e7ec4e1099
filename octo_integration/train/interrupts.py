"""SIGTERM and SIGINT as a request that the training loop honours between two steps."""

import contextlib
import dataclasses
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any


@dataclasses.dataclass
class Request:
    """The signal that asked to stop, or None so far."""

    signal: int | None = None


@contextlib.contextmanager
def interrupts() -> Iterator[Request]:
    """Within this context the first SIGTERM or SIGINT is only remembered; a second one acts as usual.

    Schedulers send SIGTERM before they take a machine away; Ctrl-C is SIGINT. Outside the main thread, where Python
    cannot set handlers, signals keep their usual effect.
    """
    request = Request()
    before: dict[int, Any] = {}

    def restore() -> None:
        while before:
            signal.signal(*before.popitem())

    def remember(number: int, frame: FrameType | None) -> None:
        request.signal = number
        restore()

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.signal(number, remember)
    try:
        yield request
    finally:
        restore()
