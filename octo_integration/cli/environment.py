"""What the process of a command has in its environment before JAX and TensorFlow are imported: quiet, and compiled
programs kept from one command to the next. What the user has set stands.
"""

import contextlib
import hashlib
import os
import platform
from pathlib import Path

from octo_integration.data.statistics import cache_directory

LARGEST = 2**31  # bytes of compiled programs that are kept


def prepare() -> None:
    """Sets it; for the process of a command only, which others that call `main` are not.

    Raises:
      ValueError: as `cache_directory`.
    """
    if os.environ.get("MAPS_VLA_DEBUG") != "1":
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # XLA's errors come as exceptions, too
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = compiled()
    with contextlib.suppress(OSError):  # programs that cannot be kept cost time, not the run
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # they are run: nobody else may write them
        if os.access(folder, os.W_OK):
            os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
        _prune(folder)


def compiled() -> Path:
    """The folder of compiled programs, beside the statistics of data sets: one for each kind of processor, because
    machines that share a home may differ in theirs.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        processor = platform.processor()
    return cache_directory() / f"compiled-{hashlib.sha256(processor.encode()).hexdigest()[:8]}"


def _prune(folder: Path) -> None:
    """Removes the oldest programs beyond LARGEST bytes; whoever is about to read one compiles it again."""
    kept = 0
    for path in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True):
        kept += path.stat().st_size
        if kept > LARGEST:
            path.unlink()
