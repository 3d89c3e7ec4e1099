"""A run directory belongs to one run, and to one process of it at a time."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax

from octo_integration.common import lock

LOCK = ".lock"
# What a run may leave that was killed before it wrote config.json.
EARLY = ("checkpoints",)


@contextlib.contextmanager
def held(out: Path) -> Iterator[None]:
    """Keeps other processes out of a run directory in this context; of one run's processes only the first asks for it.

    Raises:
      ValueError: `out` holds something that is no run.
      OSError: another process is at work in it, or it cannot be written.
    """
    if jax.process_index() > 0:
        yield
        return
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; give a directory as --out.")
    strange = [path.name for path in out.glob("*") if path.name[0] != "." and path.name not in EARLY]
    if strange and not (out / "config.json").exists():
        raise ValueError(f"{out} holds {min(strange)}, but no run (no config.json); choose another --out.")
    with lock.held(out / LOCK, out):
        yield
