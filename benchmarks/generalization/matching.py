"""Methods as curves, compared where their ID error, or their mean λ, is the same.

A method is a path: its points (ID error, OOD error) in the order of its x, straight lines in between,
Adam where x turns the method off. Paths need not be monotone (a little anchoring can improve both errors, too much
worsens both), so at an ID error e the method stands for the best that it can be made to do: the place on the path with
the smallest OOD error among all whose ID error is at most e. That is monotone in e, and takes no fit. But it is a
minimum of noisy numbers: where place and value come from the same runs, a path of seven points that do nothing beats
Adam's single point in every third simulated study. So the place is found for every run without it, by the dev errors of
the other runs, and that run's test error there is what counts, as if one tuned x in some runs and then ran it anew.
Two intervals are made of it, and the hull of both is what is reported: that of those test errors, for the places as
found, and one as wide as the spread of the plain curves over draws, in each of which places are found again. (The first
alone calls two equal paths different in every fourth simulated study; with both it is about one in twelve.) The ID
errors of the two methods are equal only up to noise; what is left is reported too, and a verdict minds it.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

from benchmarks.generalization.statistics import (
    ID,
    REFERENCE,
    Estimate,
    Point,
    Record,
    Runs,
    common,
    difference,
    draws,
    estimate,
    mean_error,
    measured,
    point,
    values,
)

Verdict = Literal["dominates", "is dominated", "crosses/undecided", "no overlap"]

# Where a method of this axis is Adam.
OFF = {"lambda": 0.0, "strength": 0.0, "decay": 0.0, "alpha": 1.0}
LEVELS = 11
SHARE = 0.9  # of the levels must lean the same way for a path to dominate


@dataclasses.dataclass(frozen=True)
class Matched:
    """Two paths compared at equal ID error.

    Attributes:
      levels: ID errors of the method on test; differences: OOD error of the one minus the other's at each.
      average: over the levels; None without any run.
      inside: the difference that is left in ID error, average over the levels.
      share: of the levels at which the method is better.
    """

    verdict: Verdict
    runs: int
    levels: tuple[float, ...] = ()
    differences: tuple[Estimate, ...] = ()
    average: Estimate | None = None
    inside: Estimate | None = None
    share: float = 0.0


def path_points(records: Sequence[Record], method: str, off: bool = True) -> dict[float | None, Point]:
    """x -> the point, in order; with Adam where x turns the method off, if `off`."""
    found = {x: point(records, method, x) for x in values(records, method)}
    axis = next((r.get("axis") for r in records if r["method"] == method), None)
    adam = point(records, REFERENCE)
    origin = OFF.get(axis or "")
    if axis == "lr" and adam:
        origin = next(iter(adam.values())).get("lr")
    if off and adam and method != REFERENCE and origin is not None:
        found.setdefault(origin, adam)
    return dict(sorted(found.items(), key=lambda item: -np.inf if item[0] is None else item[0]))


def compare(records: Sequence[Record], method: str, reference: str, conditions: Sequence[str]) -> Matched:
    """Two methods' paths on test at matched ID error, over the ID errors that both paths have on dev.

    * "dominates": the difference in OOD error, averaged over the levels, is below 0 by its interval; it is below 0 at
      90 % of the levels and at none above 0 by its interval; the method's ID error is not larger by its interval; and
      the reference reaches no ID error that is smaller by its interval.
    * "is dominated": the same the other way round.
    * "no overlap": no ID error is common, and neither is better in both errors (if one is, it dominates).
    * "crosses/undecided": anything else, few runs included.

    Runs are those that both methods have at any x; an x without some of them is left out. Against Adam a path is taken
    without Adam's own point.
    """
    versus_adam = REFERENCE in (method, reference)
    wanted = (*ID, *conditions)
    paths = []
    for name in (method, reference):
        points = path_points(records, name, off=not versus_adam).values()
        paths.append([measured(measured(p, wanted, "dev"), wanted, "test") for p in points])
    runs = tuple(sorted(set.intersection(*({run for p in path for run in p} for path in paths))))
    a, b = ([p for p in path if set(runs) <= set(p) and _finite(p, wanted)] for path in paths)
    if not runs or not a or not b:
        return Matched("no overlap", len(runs))
    return _match(a, b, runs, conditions)


def _finite(p: Point, conditions: Sequence[str]) -> bool:
    return all(np.isfinite(mean_error(r, conditions, part)) for r in p.values() for part in ("dev", "test"))


def _match(a: Sequence[Point], b: Sequence[Point], runs: Runs, conditions: Sequence[str]) -> Matched:
    # dev: per path (ID, OOD) as f[runs, points], the means of the other runs; plain: the same as f[1 + DRAWS, points].
    dev = [tuple(_others(path, runs, c) for c in (ID, conditions)) for path in (a, b)]
    plain = [
        tuple(np.stack([draws({r: p[r] for r in runs}, runs, c, "test") for p in path], 1) for c in (ID, conditions))
        for path in (a, b)
    ]

    def between(places: Sequence[np.ndarray], of: Sequence[str], spread: np.ndarray | None = None) -> Estimate:
        found = difference(mixed(a, runs, places[0], of), mixed(b, runs, places[1], of), of, "test")
        assert found is not None
        return found if spread is None else _hull(found, spread)

    least = between([_one(i) for i, _ in dev], ID, plain[0][0].min(1) - plain[1][0].min(1))
    low, high = _overlap(*(i.mean(0, keepdims=True) for i, _ in dev))
    if high < low:
        places = [_one(o) for _, o in dev]
        best, inside = between(places, conditions, plain[0][1].min(1) - plain[1][1].min(1)), between(places, ID)
        better = best.value < 0
        if best.clear and better == (inside.value < 0):
            return Matched("dominates" if better else "is dominated", len(runs), (), (), best, inside, float(better))
        return Matched("no overlap", len(runs), (), (), best, inside)

    count = 1 if len(a) == 1 or len(b) == 1 else LEVELS
    levels, drawn = (
        np.linspace(*_overlap(*(i for i, _ in paths)), count, axis=1) for paths in (dev, plain)
    )  # fmt: skip
    shares = [attainable(i, o, levels) for i, o in dev]
    curves = [np.einsum("dlk,dk->dl", attainable(i, o, drawn), o) for i, o in plain]
    spread = curves[0] - curves[1]
    each = tuple(between([x[:, k] for x in shares], conditions, spread[:, k]) for k in range(count))
    average = between([x.mean(1) for x in shares], conditions, spread.mean(1))
    left = between([x.mean(1) for x in shares], ID)
    errors = [mean_error(r, ID, "test") for k in range(count) for r in mixed(a, runs, shares[0][:, k], ID).values()]
    verdict: Verdict = "crosses/undecided"
    if average.clear:
        sign = np.sign(average.value)
        leans = np.mean([np.sign(e.value) == sign for e in each]) >= SHARE
        against = any(e.clear and np.sign(e.value) == -sign for e in (*each, least, left))
        if leans and not against:
            verdict = "dominates" if sign < 0 else "is dominated"
    better_at = float(np.mean([e.value < 0 for e in each]))
    achieved = tuple(np.reshape(errors, (count, -1)).mean(1).tolist())
    return Matched(verdict, len(runs), achieved, each, average, left, better_at)


def _hull(e: Estimate, spread: np.ndarray) -> Estimate:
    low, high = np.percentile(spread[1:] - spread[1:].mean(), (2.5, 97.5))
    return dataclasses.replace(e, low=min(e.low, e.value + float(low)), high=max(e.high, e.value + float(high)))


def _overlap(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The smallest and largest ID error that two paths, f[..., points], have in common."""
    return np.maximum(a.min(1), b.min(1)), np.minimum(a.max(1), b.max(1))


def _others(path: Sequence[Point], runs: Runs, conditions: Sequence[str]) -> np.ndarray:
    """f[runs, points]: the mean dev error of the other runs; of a single run its own."""
    own = np.array([[mean_error(p[run], conditions, "dev") for p in path] for run in runs])
    return (own.sum(0) - own) / (len(runs) - 1) if len(runs) > 1 else own


def _one(errors: np.ndarray) -> np.ndarray:
    """The place of the smallest error, as shares; f[..., points]"""
    return np.eye(errors.shape[-1])[errors.argmin(-1)]


def attainable(inside: np.ndarray, outside: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """f[paths, levels, points]: the places with the smallest OOD error whose ID error is at most the level.

    A place is given as shares of the path's points; below the path's smallest ID error it is the point that has it.

    Args:
      inside, outside: f[paths, points], errors in the order of the path.
      levels: f[paths, levels].
    """
    level, count = levels[:, :, None], inside.shape[1]
    a, b = inside[:, None, :-1], inside[:, None, 1:]
    crosses = (np.minimum(a, b) <= level) & (level < np.maximum(a, b))
    share = np.divide(level - a, b - a, out=np.zeros(crosses.shape), where=crosses)
    between = np.where(crosses, outside[:, None, :-1] + share * np.diff(outside)[:, None], np.inf)
    errors = np.concatenate([np.where(inside[:, None] <= level, outside[:, None], np.inf), between], -1)
    best = np.where(np.isfinite(errors).any(-1), errors.argmin(-1), inside.argmin(1)[:, None])
    shares = np.concatenate([np.zeros((*levels.shape, count)), share], -1)
    part = np.take_along_axis(shares, best[..., None], -1)
    unit, first = np.eye(count), best % count
    return (1 - part) * unit[first] + part * unit[np.minimum(first + 1, count - 1)]


def mixed(points: Sequence[Point], runs: Runs, shares: np.ndarray, conditions: Sequence[str]) -> Point:
    """The test errors in between the points of a path, for every run at its own place: `shares` f[runs, points]."""
    found = {}
    for run, share in zip(runs, shares):
        lines = [(s, p[run]["l1"]["test"]) for s, p in zip(share, points) if s]
        errors = {
            c: {task: sum(s * np.asarray(line[c][task], float) for s, line in lines) for task in lines[0][1][c]}
            for c in conditions
        }
        found[run] = {"method": next(iter(points[0].values()))["method"], "l1": {"test": errors}}
    return found


def at_strength(records: Sequence[Record], method: str, x: float, reference: str, conditions: Sequence[str],
                part: str = "test") -> tuple[float, Estimate] | None:  # fmt: skip
    """(mean λ, the method at x minus the reference at the same mean λ), the reference interpolated between its points.

    None where a mean λ is not known or beyond the reference's.
    """
    theirs = {
        strength: p
        for p in path_points(records, reference).values()
        if (strength := mean_strength(p)) is not None
    }  # fmt: skip
    ours = measured(point(records, method, x), conditions, part)
    target = mean_strength(ours)
    if target is None or not theirs or not min(theirs) <= target <= max(theirs):
        return None
    below, above = max(s for s in theirs if s <= target), min(s for s in theirs if s >= target)
    ends = [measured(theirs[s], conditions, part) for s in (below, above)]
    runs = common(ours, *ends)
    if not runs:
        return None
    share = (target - below) / (above - below) if above > below else 0.0
    low, high = (draws(p, runs, conditions, part) for p in ends)
    return target, estimate(draws(ours, runs, conditions, part) - (1 - share) * low - share * high, len(runs))


def mean_strength(p: Point) -> float | None:
    """The mean λ over parameters, 0 of Adam; None where it is not known."""
    found = [0.0 if r["method"] == REFERENCE else r.get("mean_lambda") for r in p.values()]
    return None if not found or None in found else float(np.mean([x for x in found if x is not None]))
