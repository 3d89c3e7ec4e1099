"""Runs the plan over processes: every point, every pair of a pretrained model and a seed; results as JSON lines.

The lines of a run are written when it has ended, and the same command goes on with the runs that are missing.
"""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.generalization import statistics
from benchmarks.generalization.choice import chosen_points
from benchmarks.generalization.data import prepare
from benchmarks.generalization.methods import Point
from benchmarks.generalization.plan import PROFILES, Job, described, weights_path
from benchmarks.generalization.processes import CPU, GPU, write_lines
from benchmarks.generalization.worker import execute


def run(profile: str, out: Path, results: Path, workers: int, only: Sequence[str]) -> None:
    """Runs what is missing in `results`; see the module.

    Args:
      out: directory of the data and of the fine-tuned weights.
      results: the file of JSON lines.
      only: names of points ("linear/lambda=2") or of whole methods ("linear"); none: all.

    Raises:
      FileNotFoundError: pretrained weights are missing.
      ValueError: no point or method is called so; `out` holds data of another size; a line of `results` is damaged;
        what the points are chosen by has not been run to its end.
      ChildProcessError, SystemExit: as `write_lines`.
    """
    size, points = PROFILES[profile], chosen_points(profile, out)
    unknown = set(only) - {name for point in points for name in (point.name, point.method)}
    if unknown:
        names = ", ".join(point.name for point in points)
        raise ValueError(f"there is no point or method {sorted(unknown)} in profile {profile!r}; there are {names}.")
    chosen = [point for point in points if not only or {point.name, point.method} & set(only)]
    jobs = [Job(point, *pair, profile, out) for point in chosen for pair in size.pairs]
    before = Point("pretrained", "before fine-tuning", model=points[0].model)
    pretrainings = dict.fromkeys(p for p, _ in size.pairs)
    untrained = [Job(before, p, size.pairs[0][1], profile, out) for p in pretrainings if not only]
    for job in (*untrained, *jobs):
        weights_path(job.point.model, size.pretrained, job.pretrain)
    done = {r["key"]: r.get("steps") for r in statistics.read(results)} if results.exists() else {}
    missing = [job for job in (*untrained, *jobs) if job.key not in done]
    for job in jobs:
        steps = described(job, job.point)["steps"]
        if done.get(job.key, steps) != steps:
            raise ValueError(f"{results} has {job.key!r} after {done[job.key]} steps, not {steps}; move it away.")
    for data, seed in {job.data: job.seed for job in missing}.items():
        prepare(data, size.data, workers, seed if size.own_data else 0)
    write_lines(execute, missing, results, workers=workers, label="study", environment=GPU if size.gpu else CPU)
