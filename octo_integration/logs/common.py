"""What a logger is: a context of one run that is told of its steps and scalars."""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import NamedTuple, TypeAlias


class Run(NamedTuple):
    """What a logger may know when it is opened.

    Attributes:
      out: the run directory.
      name: of the run, for people.
      start: steps done already.
      steps: steps of the whole run.
    """

    out: Path
    name: str
    start: int
    steps: int


class Logger:
    """The form of every logger; what it does not take note of, it leaves."""

    def advance(self) -> None:
        """One step done (nothing is fetched from the device)."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Host scalars of `step`; slashes group their names.

        Raises:
          OSError: they could not be written (full disk, say).
        """


Opener: TypeAlias = Callable[[Run], contextlib.AbstractContextManager[Logger]]


@contextlib.contextmanager
def appending(path: Path) -> Iterator[Callable[[bytes], None]]:
    """A function that adds bytes to a file.

    Raises:
      OSError: it cannot be opened or, by the function, written; names the file.
    """
    with _told(path):
        file = FileIO(path, "a")  # unbuffered: what a full disk has refused is not written again when it is closed

    def append(data: bytes) -> None:
        with _told(path):
            if file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with file:
        yield append


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Makes an OSError one that names the file, as writing does not."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"cannot write {path}: {error.strerror or error}; make room, or give a folder that may be written. The "
            "same command resumes the run."
        ) from None
