"""Files written whole or not at all."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def replacing(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """A file beside `path`, with its ending, that takes its place when the context ends; on an error nothing is left.

    It is on the disk before it gets the name, so that a machine that stops has the old file or the new one. What a
    killed process leaves begins with a dot, and the next one overwrites it.

    Args:
      shared: several processes may write `path` at the same time; the last one wins.

    Raises:
      OSError: it could not be written; names `path`.
    """
    temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
    try:
        if shared:
            handle, name = tempfile.mkstemp(path.suffix, f".{path.stem}.tmp", path.parent)
            os.close(handle)
            temporary = Path(name)
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)
    except OSError as error:
        raise OSError(
            f"cannot write {path}: {error.strerror or error}; make room, or give a folder that may be written."
        ) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON, as `replacing` does."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n")


def _flush(path: Path) -> None:
    """Waits until a file, or which files a folder holds, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
