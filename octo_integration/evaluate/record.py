"""Episodes of an evaluation, one JSON line each, written as soon as it has ended: the same command goes on with it.

The first line says what was evaluated, and how; two files with the same first line, but for "about", hold episodes of
the same experiment. An aborted evaluation leaves at most a torn last line, which is not read, and removed when the file
is written to again.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from octo_integration.common import lock
from octo_integration.evaluate.rollout import Episode, Outcome

HEADER = "evaluation"
FOLDER = "evaluations"

Settings = Mapping[str, Any]


class Recorded(NamedTuple):
    """What a file holds."""

    settings: Settings
    outcomes: dict[Episode, Outcome]


class Record(NamedTuple):
    """A file open for writing: the episodes that it already has, and how another is added."""

    outcomes: dict[Episode, Outcome]
    add: Callable[[Episode, Outcome], None]


def default_path(run: Path, settings: Settings) -> Path:
    """Where the episodes of a run are kept: other settings, or another checkpoint, have another file."""
    code = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    simulator = "".join(c if c.isalnum() else "-" for c in str(settings["simulator"]))
    return run / FOLDER / f"{simulator}-step{settings['step']}-{code}.jsonl"


@contextlib.contextmanager
def recording(path: Path, settings: Settings, about: Settings) -> Iterator[Record]:
    """Opens the file, or makes it; no other process can do so in this context.

    Args:
      settings: what makes two evaluations one experiment.
      about: what else is worth knowing.

    Raises:
      OSError: it cannot be written, or another process writes it.
      ValueError: it is damaged, or holds episodes of other settings; names the first that differs.
    """
    with lock.held(lock.beside(path), path):
        outcomes: dict[Episode, Outcome] = {}
        if path.exists() and (size := _whole(path)):
            found, outcomes = read(path)
            for name in sorted({*found, *settings}):
                if found.get(name) != settings.get(name):
                    raise ValueError(
                        f"{path} holds episodes with {name}={found.get(name)!r}, not {settings.get(name)!r}; give "
                        "another --out, or the same."
                    )
            os.truncate(path, size)
        else:
            _write(path, {HEADER: dict(settings), "about": dict(about)}, "w")

        def add(episode: Episode, outcome: Outcome) -> None:
            values = {**episode._asdict(), **outcome._asdict()}
            _write(path, {name: value for name, value in values.items() if value is not None}, "a")
            outcomes[episode] = outcome

        yield Record(outcomes, add)


def read(path: Path) -> Recorded:
    """Reads such a file.

    Raises:
      FileNotFoundError, ValueError: there is none, or it is none, or is damaged; names file and line.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no {path}; give the file of an evaluation.")
    lines = path.read_bytes()[: _whole(path)].splitlines()
    outcomes: dict[Episode, Outcome] = {}
    settings: Any = None
    for number, line in enumerate(lines, 1):
        try:
            values = json.loads(line)
            if number == 1:
                settings = dict(values[HEADER])
                continue
            episode = Episode(str(values["task"]), str(values["shift"]), int(values["number"]))
            reached = values.get("reached")
            outcome = Outcome(values["success"], int(values["steps"]), None if reached is None else int(reached))
            if not isinstance(outcome.success, bool) or episode in outcomes:
                raise ValueError("no outcome, or one that was there before")
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ValueError(
                f"{path}: line {number} is not of an evaluation ({error!r}); take that line out, or the file away."
            ) from None
        outcomes[episode] = outcome
    if settings is None:
        raise ValueError(f"{path} is empty; take it away.")
    return Recorded(settings, outcomes)


def find(place: Path) -> Path:
    """A file itself, or the one of a run directory.

    Raises:
      FileNotFoundError, ValueError: the run has none, or several.
    """
    if not place.is_dir():
        return place
    files = sorted((place / FOLDER).glob("*.jsonl"))
    if not files:
        raise FileNotFoundError(f"{place} has no episodes; run maps-vla evaluate --run {place} first.")
    if len(files) > 1:
        raise ValueError(f"{place} has several evaluations; give one of {', '.join(map(str, files))}.")
    return files[0]


def _whole(path: Path) -> int:
    """The length of the lines that are complete."""
    return path.read_bytes().rfind(b"\n") + 1


def _write(path: Path, values: Mapping[str, Any], mode: str) -> None:
    try:
        with open(path, mode) as file:
            file.write(json.dumps(values) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(
            f"cannot write {path}: {error.strerror}; make room, and give the command again: it goes on."
        ) from None
