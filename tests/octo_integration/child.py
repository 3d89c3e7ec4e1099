"""What a test's own processes find in their environment."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]


def environment(root: Path) -> dict[str, str]:
    """This one's, on the CPU, with this checkout's packages and with caches under `root`: compiling takes the time."""
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(root / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "XDG_CACHE_HOME": str(root / "statistics"),
    }
