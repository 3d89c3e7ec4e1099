"""SIGTERM and SIGINT as a request that loops honour between two steps or two batches."""

import contextlib
import dataclasses
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping
from types import FrameType
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

T = TypeVar("T")


class Interrupted(Exception):
    """Work was left unfinished because a signal asked to stop."""


@dataclasses.dataclass
class Request:
    """A request to stop.

    Attributes:
      signal: the signal that asked this process, or None so far.
      agreed: the signal that all processes of the run stop for, or None so far.
      usual: what the signals that are heeded do otherwise.
    """

    signal: int | None = None
    agreed: int | None = None
    usual: Mapping[int, Any] = dataclasses.field(default_factory=dict)

    def ask(self, *, together: bool = True) -> int | None:
        """`agreed`, brought up to date.

        Args:
          together: whether all processes of the run ask now, at the same step; otherwise several learn nothing new.
        """
        if self.agreed is None and jax.process_count() == 1:
            self.agreed = self.signal
        elif self.agreed is None and together:
            self.agreed = int(np.max(multihost_utils.process_allgather(np.asarray(self.signal or 0)))) or None
        return self.agreed

    def heeded(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches; raises Interrupted before the next one where a signal asks to stop."""
        for batch in batches:
            if self.ask() is not None:
                raise Interrupted
            yield batch

    @contextlib.contextmanager
    def unheeded(self) -> Iterator[None]:
        """Within this context signals do what they usually do: nothing of what is done in it need be saved."""
        heeding = {number: signal.signal(number, usual) for number, usual in self.usual.items()}
        try:
            yield
        finally:
            for number, handler in heeding.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def interrupts(finishing: str = "this step, then saving") -> Iterator[Request]:
    """Within this context the first SIGTERM or SIGINT is only remembered, and answered; a second one acts as usual.

    Schedulers send SIGTERM before they take a machine away; Ctrl-C is SIGINT. Outside the main thread, where Python
    cannot set handlers, signals keep their usual effect.

    Args:
      finishing: what is done before the end, for the answer.
    """
    before: dict[int, Any] = {}
    request = Request(usual=before)

    def restore() -> None:
        while before:
            signal.signal(*before.popitem())

    def remember(number: int, frame: FrameType | None) -> None:
        request.signal = number
        restore()
        os.write(
            2, f"\nfinishing {finishing}; again to stop at once\n".encode()
        )  # not by print, in which the signal may have come

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.signal(number, remember)
    try:
        yield request
    finally:
        restore()
