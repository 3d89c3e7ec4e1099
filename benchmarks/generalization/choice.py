"""Which points of a profile are run: where a method is to be run at one number, the best on another profile's dev."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.generalization import statistics
from benchmarks.generalization.methods import Point
from benchmarks.generalization.plan import PROFILES, key, lines


def chosen_points(profile: str, out: Path) -> tuple[Point, ...]:
    """The points of a profile, of the methods in `choose` one each.

    Args:
      out: as of `study.run`.

    Raises:
      FileNotFoundError, ValueError: the profile that they are chosen by has not been run, or not to its end.
    """
    size = PROFILES[profile]
    if size.chosen_by is None:
        return size.points
    path = lines(size.chosen_by, "results", out)
    command = f"python -m benchmarks.generalization run --profile {size.chosen_by}"
    if not path.is_file():
        raise FileNotFoundError(f"profile {profile!r} chooses by {path}, which is not there; run {command} first.")
    records = statistics.read(path)
    there = {record["key"] for record in records}
    for point in PROFILES[size.chosen_by].points:
        for pair in PROFILES[size.chosen_by].pairs:
            if point.method in size.choose and key(point.name, *pair) not in there:
                raise ValueError(f"{path} has no run {key(point.name, *pair)!r}; finish {command} first.")
    best = {method: statistics.select(records, method, covered) for method in size.choose}
    return tuple(p for p in size.points if p.method not in best or p.x == best[p.method])


def covered(dev: Sequence[statistics.Record], method: str, x: float | None) -> float:
    """The criterion of PREREGISTRATION.md: the mean ID error and the mean under the looks that pretraining covered."""
    p = statistics.point(dev, method, x)
    return sum(float(statistics.run_mean(p, c, "dev")) for c in (statistics.ID, statistics.COVERED))
