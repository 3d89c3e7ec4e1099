"""Recorded episodes beside the data set they are for, so that the same command goes on where it was stopped.

A folder `.<name>.parts` of JSON, images as base64: who finds it there can read it, and reading it runs nothing.
"""

import base64
import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from octo_integration.common.files import replacing

OPTIONS = "options.json"
BYTES = "base64"


@contextlib.contextmanager
def parts(out: Path, options: Mapping[str, Any]) -> Iterator[Path]:
    """The folder for the episodes of `out`. It stays where the block fails and some are recorded, and goes otherwise.

    What a process that was ended left half-written goes, too.

    Args:
      options: those that decide what is recorded.

    Raises:
      ValueError: there is one of other options; names the first that differs.
    """
    folder = out.with_name(f".{out.name}.parts")
    file = folder / OPTIONS
    given = json.loads(json.dumps(options))
    if file.exists():
        begun = json.loads(file.read_text())
        for name, value in given.items():
            if begun.get(name) != value:
                raise ValueError(
                    f"{folder} holds episodes recorded with {name}={begun.get(name)!r}, not {value!r}; give "
                    "the same to go on with them, remove the folder, or give another --out."
                )
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write(file, given)
    done = False
    try:
        yield folder
        done = True
    finally:
        for half in folder.glob(".*"):
            half.unlink()
        recorded = sum(path.name != OPTIONS for path in folder.iterdir())
        if done or not recorded:
            shutil.rmtree(folder)
        else:
            print(f"{recorded} recorded episodes are kept in {folder}; the same command goes on.", flush=True)


def write(path: Path, value: Any) -> None:
    """Writes JSON, as `replacing` does."""
    try:
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(value, default=_plain))
    except OSError as error:
        raise OSError(f"{error} The same command then goes on.") from None


def read(path: Path) -> Any:
    """What `write` wrote; arrays are lists of the same numbers.

    Raises:
      ValueError: it is damaged.
    """
    try:
        return json.loads(path.read_text(), object_hook=_restored)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); remove it, and give the command again.") from None


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return {BYTES: base64.b64encode(value).decode()}
    if isinstance(value, np.ndarray):
        return value.tolist()  # float32 as float64, which gives back the same bits
    raise TypeError(f"{type(value)} cannot be written")


def _restored(value: dict[str, Any]) -> Any:
    return base64.b64decode(value[BYTES]) if value.keys() == {BYTES} else value
