"""Runs the plan over processes: every point, every pair of a pretrained model and a seed; results as JSON lines.

A line is written when its run has ended, so an interrupted study loses at most the runs under way, and the same command
goes on with those that are missing.
"""

import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
import platform
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.generalization import methods
from benchmarks.generalization.data import PARTS, DataSizes, prepare
from benchmarks.generalization.methods import Derived, Point

Record = dict[str, Any]

HERE = Path(__file__).parent
# One thread per process, and glibc's heap kept between steps: fresh pages for every step's buffers are dear.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(10**11),
    "MALLOC_TOP_PAD_": str(2**28),
}


@dataclasses.dataclass(frozen=True)
class Profile:
    """A size of the study.

    Attributes:
      points: the plan, in the order in which it is run.
      pairs: (pretrained model, seed) that every point is run with.
      steps, lr: of fine-tuning, where a point has none of its own.
      data: how much is collected.
      parts: what is measured: dev, to choose by, and test.
    """

    points: tuple[Point, ...]
    pairs: tuple[tuple[int, int], ...]
    steps: int
    lr: float
    data: DataSizes
    parts: tuple[str, ...] = PARTS


PROFILES: Mapping[str, Profile] = {
    "default": Profile(
        tuple(methods.PLAN), ((0, 0), (1, 3), (0, 1), (1, 4), (0, 2)), steps=400, lr=1e-3, data=DataSizes()
    ),
    "rates": Profile(tuple(methods.RATES), ((0, 0), (1, 3)), steps=400, lr=1e-3, data=DataSizes(), parts=("dev",)),
    "smoke": Profile(tuple(methods.SMOKE), ((0, 0),), steps=10, lr=1e-3, data=DataSizes(1, 1, 256)),
}


@dataclasses.dataclass(frozen=True)
class Job:
    """One run: a point, a pretrained model and a seed."""

    point: Point
    pretrain: int
    seed: int
    profile: str
    out: Path

    @property
    def key(self) -> str:
        """Of its line."""
        return key(self.point.name, self.pretrain, self.seed)


def key(name: str, pretrain: int, seed: int) -> str:
    """Of a line of the results."""
    return f"{name}/p{pretrain}/s{seed}"


def run(profile: str, out: Path, results: Path, workers: int, only: str) -> None:
    """Runs what is missing in `results`; see the module.

    Args:
      out: directory of the data and of the fine-tuned weights.
      results: the file of JSON lines.
      only: methods whose name contains it; "": all.

    Raises:
      FileNotFoundError: pretrained weights are missing.
      ChildProcessError: a worker died.
    """
    size = PROFILES[profile]
    for pretrained in {p for p, _ in size.pairs}:
        weights_path(pretrained)
    prepare(out, size.data, workers)
    done = {json.loads(line)["key"] for line in results.read_text().splitlines()} if results.exists() else set()
    jobs = [Job(p, *pair, profile, out) for p in size.points if only in p.method for pair in size.pairs]
    constants = [] if only else [Job(Point("pretrained", "before fine-tuning"), p, 0, profile, out) for p in (0, 1)]
    missing = [job for job in (*constants, *jobs) if job.key not in done]
    os.environ.update(ENVIRONMENT)
    results.parent.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    origin = {"commit": commit(), "machine": machine(), "profile": profile}
    with concurrent.futures.ProcessPoolExecutor(workers, context, initializer=ignore_interrupts) as pool:
        futures = [pool.submit(execute, job) for job in missing]
        try:
            with tqdm(total=len(futures), desc="study", unit="run") as bar, results.open("a") as file:
                for future in concurrent.futures.as_completed(futures):
                    for record in future.result():
                        file.write(json.dumps({**record, **origin}) + "\n")
                    file.flush()
                    bar.update()
        except concurrent.futures.process.BrokenProcessPool:
            raise ChildProcessError("a worker died (out of memory?); the same command goes on.") from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def ignore_interrupts() -> None:
    """Ctrl-C reaches the whole process group; the parent alone decides what follows."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def weights_path(pretrained: int) -> Path:
    """The weights of a pretraining: 0 are the shipped ones.

    Raises:
      FileNotFoundError: they are not there.
    """
    import octo_integration

    shipped = Path(octo_integration.__file__).parent / "assets" / "tiny.safetensors"
    path = shipped if pretrained == 0 else HERE / "pretrained" / f"seed{pretrained}.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"there are no weights {path}; make them with maps-vla pretrain --seed {pretrained}.")
    return path


def execute(job: Job) -> list[Record]:
    """One run and all it is measured by; runs in a worker."""
    from benchmarks.generalization import worker  # jax, under ENVIRONMENT

    started = time.perf_counter()
    records = worker.pretrained(job) if job.point.method == "pretrained" else worker.run(job)
    seconds = round(time.perf_counter() - started, 1)
    return [{**record, "seconds": seconds} for record in records]


def described(job: Job, point: Point | Derived) -> Record:
    """The part of a record that says what was run."""
    derived = isinstance(point, Derived)
    base = job.point
    axis = "alpha" if derived and point.x is not None else None if derived else base.axis
    name = point.method if point.x is None else f"{point.method}/{axis}={point.x:g}"
    return {
        "key": key(name, job.pretrain, job.seed),
        "method": point.method,
        "label": point.label,
        "axis": axis,
        "x": point.x,
        "group": base.group,
        "pretrain": job.pretrain,
        "seed": job.seed,
        "steps": base.steps or PROFILES[job.profile].steps,
        "demos": base.demos or PROFILES[job.profile].data.train,
        "lr": base.lr or PROFILES[job.profile].lr,
    }


def commit() -> str:
    """Of the sources, with + where they are changed."""

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(HERE), *words], capture_output=True, text=True).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--", "*.py") else "")


def machine() -> str:
    """What it ran on."""
    return f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, numpy {np.__version__}"
