"""What a run tells while it runs; of several processes, the first one's."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax

from octo_integration.config import LogConfig
from octo_integration.logs import lines, progress, tensorboard, wandb
from octo_integration.logs.common import Logger, Opener, Run

LOGGERS: Sequence[Opener] = (progress.opened, lines.opened, tensorboard.opened)


class RunLog(Logger):
    """All of a run's loggers, opened by `open_log`."""

    def __init__(self, loggers: Sequence[Logger]) -> None:
        """Keeps them."""
        self._loggers = loggers

    def advance(self) -> None:
        """One step done (nothing is fetched from the device)."""
        for logger in self._loggers:
            logger.advance()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Logs host scalars of `step`.

        Raises:
          OSError: they could not be written (full disk, say).
        """
        for logger in self._loggers:
            logger.scalars(step, values)


@contextlib.contextmanager
def open_log(out: Path, *, start: int, steps: int, name: str, more: Sequence[Opener] = ()) -> Iterator[RunLog]:
    """Opens the loggers of a run; all processes but the first are silent.

    Args:
      out, start, steps, name: as of `Run`.
      more: loggers beside those that every run has (see `openers`).
    """
    wanted = (*LOGGERS, *more) if jax.process_index() == 0 else ()
    with contextlib.ExitStack() as stack:
        yield RunLog([stack.enter_context(opened(Run(out, name, start, steps))) for opened in wanted])


def openers(config: LogConfig) -> Sequence[Opener]:
    """The loggers that are asked for, ready to be opened.

    Raises:
      ModuleNotFoundError, ValueError: what one of them needs is not there.
    """
    return () if config.wandb == "off" else (wandb.ready(config.wandb, config.project),)
