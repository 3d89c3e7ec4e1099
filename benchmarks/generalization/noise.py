"""The noise floor of rounding: how far two runs of one configuration and one seed end from each other.

    python -m benchmarks.generalization.noise          # noise.jsonl; minutes of two cores, more to make the data

Same code, data, weights and order; narrower vector instructions, or other kernels, add sums in another order, as
another machine would (two threads do not). After some hundred steps the last digits have become differences that are
seen. A difference between two methods in one run that is no larger than these says nothing.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from benchmarks.generalization import plan, statistics
from benchmarks.generalization.data import prepare
from benchmarks.generalization.plan import Job
from benchmarks.generalization.processes import CPU, HERE, Record, write_lines
from benchmarks.generalization.tables import Row, markdown, number, title
from benchmarks.generalization.worker import execute

# Of the same numbers; what is compared with the study's one thread. XLA stops reading at the first word without "--".
WAYS = {
    "one thread": {},
    "two threads": {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=true"},
    "SSE 4.2": {"XLA_FLAGS": f"{CPU['XLA_FLAGS']} --xla_cpu_max_isa=SSE4_2"},
    "no YNNPACK": {"XLA_FLAGS": f"{CPU['XLA_FLAGS']} --xla_cpu_experimental_ynn_fusion_type="},
}
SETS = {**{c: (c,) for c in statistics.CONDITIONS}, "covered": statistics.COVERED, "gap": statistics.GAP}


def run(out: Path, results: Path) -> None:
    """Runs what is missing in `results`: the first pair of the study, each way.

    Args:
      out: as of the study, its profile "noise".

    Raises:
      As `study.run`.
    """
    profile = plan.PROFILES["noise"]
    prepare(out, profile.data, 2)
    done = {r["key"] for r in read(results)}
    for way, changes in WAYS.items():
        jobs = [Way(way, Job(p, *profile.pairs[0], "noise", out)) for p in profile.points]
        missing = [job for job in jobs if job.key not in done]
        if missing:
            write_lines(measure, missing, results, workers=2, label=way, environment={**CPU, **changes})


@dataclasses.dataclass(frozen=True)
class Way:
    """A job, run in one way."""

    way: str
    job: Job

    @property
    def key(self) -> str:
        """Of its line."""
        return f"{self.job.key}/{self.way}"


def measure(job: Way) -> list[Record]:
    """The end of the run without what was derived from it; runs in a worker."""
    return [{**execute(job.job)[0], "key": job.key, "way": job.way}]


def table(lines: list[dict[str, Any]]) -> str:
    """The change of every error from one thread to each other way, of both methods, and of their difference."""
    found = {(r["method"], r["way"]): r for r in lines}
    base, others = next(iter(WAYS)), list(WAYS)[1:]
    names = list(dict.fromkeys(method for method, _ in found))
    rows: list[Row] = []
    for name, conditions in SETS.items():
        errors = {k: statistics.mean_error(r, conditions, "test") for k, r in found.items()}
        changes = {(m, w): errors[m, w] - errors[m, base] for m in names for w in others if (m, w) in errors}
        apart = [changes[names[1], w] - changes[names[0], w] for w in others if len(names) > 1]
        largest = max(map(abs, [*changes.values(), *apart]), default=np.nan)
        rows.append([title(name), number(errors[names[0], base]), *map(number, changes.values()), number(largest)])
    header = ["", "Adam, one thread", *(f"{m}, {w}" for m in names for w in others), "largest, or of the difference"]
    return markdown(header, rows)


def read(path: Path) -> list[dict[str, Any]]:
    """The lines; none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main(out: Path = Path("runs/noise"), results: Path = HERE / "noise.jsonl") -> None:
    """Runs what is missing, and prints the table.

    Args:
      out: demonstrations and probe frames.
      results: JSON lines.
    """
    run(out, results)
    print(table(read(results)))


if __name__ == "__main__":
    tyro.cli(main)
