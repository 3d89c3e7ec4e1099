"""metrics.jsonl: a line for every step that is logged."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from octo_integration.common.files import replacing
from octo_integration.logs.common import Logger, Run, appending

FILE = "metrics.jsonl"


class Lines(Logger):
    """Adds to the open file."""

    def __init__(self, append: Callable[[bytes], None]) -> None:
        """Keeps what adds to it."""
        self._append = append

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One line."""
        self._append((json.dumps({"step": step, **values}) + "\n").encode())


@contextlib.contextmanager
def opened(run: Run) -> Iterator[Lines]:
    """Lines of steps after the one that the run goes on from are dropped: each is there once, however often it was
    interrupted.
    """
    _keep(run.out / FILE, run.start)
    with appending(run.out / FILE) as append:
        yield Lines(append)


def _keep(path: Path, last: int) -> None:
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
