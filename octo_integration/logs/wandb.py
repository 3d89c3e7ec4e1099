"""Weights & Biases: one run of theirs for each of ours, continued where ours is resumed."""

import contextlib
import importlib
import json
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from octo_integration.common.files import write_json
from octo_integration.logs.common import Logger, Opener, Run

FILE = "wandb.json"


class Points(Logger):
    """Adds to a run of theirs."""

    def __init__(self, run: Any) -> None:
        """Keeps it."""
        self._run = run

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """A point of each. Steps that are made again after a kill come out the same, and are dropped there."""
        if values:
            self._run.log(dict(values), step=step)


def ready(mode: Literal["online", "offline"], project: str) -> Opener:
    """What opens it; asks for a login now, where there is none.

    Raises:
      ModuleNotFoundError: wandb is not installed.
      ValueError: nobody is logged in.
    """
    package = importlib.import_module("wandb")
    if mode == "online":
        with _told(package):
            package.login()

    @contextlib.contextmanager
    def opened(run: Run) -> Iterator[Logger]:
        if run.start >= run.steps:  # a finished run has no points to add
            yield Logger()
            return
        path, config = run.out / FILE, run.out / "config.json"
        if not path.is_file():
            write_json(path, {"id": uuid.uuid4().hex[:16]})
        with _told(package):
            theirs = package.init(
                project=project,
                name=run.out.resolve().name,
                id=json.loads(path.read_text())["id"],
                resume=None if mode == "offline" else "allow",
                dir=str(run.out),
                mode=mode,
                config=json.loads(config.read_text()) if config.is_file() else None,
                settings=package.Settings(console="off"),
            )
        try:
            yield Points(theirs)
        finally:
            theirs.finish()

    return opened


@contextlib.contextmanager
def _told(package: Any) -> Iterator[None]:
    """Makes a ValueError with a remedy of what wandb raises."""
    try:
        yield
    except package.Error as error:
        raise ValueError(
            f"wandb: {' '.join(str(error).split())[:300]}; run `wandb login`, or give --log.wandb offline."
        ) from None
