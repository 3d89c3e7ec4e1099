"""The bar of a run: says that the first step is compiled, and counts time from the second on."""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from octo_integration.logs.common import Logger, Run

COMPILING = "{desc}: compiling the first step …"


class Bar(Logger):
    """Moves a bar of tqdm."""

    def __init__(self, bar: Any) -> None:
        """Keeps it."""
        self._bar = bar

    def advance(self) -> None:
        """One step done. The first one's time, which is that of compiling it, does not count for the time to go."""
        bar = self._bar
        if bar.bar_format is None:
            bar.update()
            return
        bar.bar_format = None
        bar.initial = bar.n = bar.last_print_n = bar.n + 1
        bar.unpause()
        bar.refresh()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Shows the loss."""
        if "loss" in values:
            self._bar.set_postfix(loss=f"{values['loss']:.4f}", refresh=False)


@contextlib.contextmanager
def opened(run: Run, **options: Any) -> Iterator[Bar]:
    """A bar on stderr; a log file gets a line now and then, a terminal a living bar.

    Args:
      options: of tqdm.
    """
    from tqdm import tqdm

    told = COMPILING if run.start < run.steps else None
    options = {"mininterval": 0.1 if sys.stderr.isatty() else 15.0, **options}
    with tqdm(total=run.steps, initial=run.start, desc=run.name, unit="step", bar_format=told, **options) as bar:
        yield Bar(bar)
