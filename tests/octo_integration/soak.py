"""`maps-vla finetune` and `evaluate` in a loop, in one process: what a cycle leaves behind adds up.

python -m tests.octo_integration.soak SECONDS FOLDER MODEL STEPS

A cycle resumes the run of MODEL in FOLDER for another STEPS steps, lets its policy act once, and prints a line of JSON.
"""

import contextlib
import ctypes
import gc
import io
import json
import os
import sys
import threading
import time
from pathlib import Path

from octo_integration.cli import commands
from octo_integration.model.sizes import CONFIGS
from tests.octo_integration import micro_vla

CONFIGS["micro"] = micro_vla.CONFIG
LEAST = 3  # cycles


def cycle(out: Path, model: str, steps: int) -> None:
    """Raises RuntimeError where a command fails."""
    weights = model if model == "tiny" else "None"
    run = ["finetune", "--out", str(out), "--model", model, "--weights", weights, "--optimizer.steps", str(steps)]
    run += ["--optimizer.warmup", "2", "--eval-splits", "heldout", "--save-every", "50"]
    act = ["evaluate", "--run", str(out), "--tasks", "reach", "--episodes", "1", "--max-steps", "8"]
    for command in (run, act):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            code = commands.main(command)
        if code:
            raise RuntimeError(f"{' '.join(command)} gave {code}:\n{printed.getvalue()}")


def held() -> dict[str, float]:
    """What this process holds: memory (MiB), open files, threads, and children, dead ones too."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # what glibc keeps without a use for it does not count
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    children = [task / "children" for task in Path("/proc/self/task").iterdir()]
    return {
        "mib": pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
        "files": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "children": sum(len(path.read_text().split()) for path in children),
    }


def soak(seconds: float, out: Path, model: str, steps: int) -> None:
    """Prints a record after each cycle."""
    began, count = time.monotonic(), 0
    while count < LEAST or time.monotonic() - began < seconds:
        count += 1
        cycle(out, model, count * steps)
        print(json.dumps({"cycle": count, "seconds": round(time.monotonic() - began, 1), **held()}), flush=True)


if __name__ == "__main__":
    soak(float(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
