"""Jobs over processes whose results are lines of JSON: written as each job ends, and nothing is lost to a signal."""

import concurrent.futures
import json
import multiprocessing
import os
import platform
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from octo_integration.processes.interrupts import interrupts

Job = TypeVar("Job")
Record = dict[str, Any]

HERE = Path(__file__).parent
# One thread per process, and glibc's heap kept between steps: fresh pages for every step's buffers are dear.
CPU = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(10**11),
    "MALLOC_TOP_PAD_": str(2**28),
}


# Processes that share one accelerator take memory as they need it.
GPU = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


def write_lines(
    function: Callable[[Job], list[Record]],
    jobs: Sequence[Job],
    path: Path,
    *,
    workers: int,
    label: str,
    environment: Mapping[str, str],
) -> None:
    """Appends the records of function(job), for every job, to a file of JSON lines, with commit and machine.

    A job starts when a process is free for it. After SIGTERM or Ctrl-C those under way are finished and written.

    Args:
      function: importable; it runs in a process of its own.
      environment: variables of the processes.

    Raises:
      ChildProcessError: a process died. Whatever `function` raises, after the jobs under way.
      SystemExit: stopped by a signal.
    """
    os.environ.update(environment)
    path.parent.mkdir(parents=True, exist_ok=True)
    origin = {"commit": _commit(), "machine": _machine()}
    waiting = list(reversed(jobs))
    running: set[concurrent.futures.Future[list[Record]]] = set()
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_leave_signals_to_the_parent
    )
    with (
        interrupts("the runs under way") as request,
        pool,
        tqdm(total=len(jobs), desc=label, unit="run") as bar,
        path.open("a") as file,
    ):
        while running or (waiting and request.signal is None):
            while waiting and len(running) < workers and request.signal is None:
                running.add(pool.submit(function, waiting.pop()))
            done, running = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in done:
                try:
                    records = future.result()
                except concurrent.futures.process.BrokenProcessPool:
                    raise ChildProcessError("a process died (out of memory?); the same command goes on.") from None
                file.write("".join(json.dumps({**record, **origin}) + "\n" for record in records))
                file.flush()
                bar.update()
    if request.signal is not None:
        print(f"stopped by signal {request.signal}, {len(waiting)} runs to go; the same command goes on.")
        raise SystemExit(128 + request.signal)


def _leave_signals_to_the_parent() -> None:
    # They reach the whole process group; the parent alone decides what follows.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _commit() -> str:
    """Of the sources, with + where they are changed."""

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(HERE), *words], capture_output=True, text=True).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--", "*.py") else "")


def _machine() -> str:
    return f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, numpy {np.__version__}"
