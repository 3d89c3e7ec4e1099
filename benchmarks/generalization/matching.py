"""Methods as curves: their points along x, and the comparison at equal mean λ."""

from collections.abc import Sequence

import numpy as np

from benchmarks.generalization.statistics import (
    REFERENCE,
    Estimate,
    Point,
    Record,
    common,
    errors,
    estimate,
    measured,
    point,
    values,
)

# Where a method of this axis is Adam.
OFF = {"lambda": 0.0, "strength": 0.0, "decay": 0.0, "alpha": 1.0}


def path_points(records: Sequence[Record], method: str) -> dict[float | None, Point]:
    """x -> the point, in order; with Adam where x turns the method off."""
    found = {x: point(records, method, x) for x in values(records, method)}
    axis = next((r.get("axis") for r in records if r["method"] == method), None)
    adam = point(records, REFERENCE)
    origin = OFF.get(axis or "")
    if axis == "lr" and adam:
        origin = next(iter(adam.values())).get("lr")
    if adam and method != REFERENCE and origin is not None:
        found.setdefault(origin, adam)
    return dict(sorted(found.items(), key=lambda item: -np.inf if item[0] is None else item[0]))


def at_strength(
    records: Sequence[Record], method: str, x: float, reference: str, conditions: Sequence[str]
) -> tuple[float, Estimate] | None:
    """(mean λ, the test error of the method at x minus the reference's at the same mean λ, between its points).

    None where a mean λ is not known or beyond the reference's.
    """
    found = {mean_strength(p): p for p in path_points(records, reference).values()}
    theirs = {strength: p for strength, p in found.items() if strength is not None}
    ours = measured(point(records, method, x), conditions, "test")
    target = mean_strength(ours)
    if target is None or not theirs or not min(theirs) <= target <= max(theirs):
        return None
    below, above = max(s for s in theirs if s <= target), min(s for s in theirs if s >= target)
    ends = [measured(theirs[s], conditions, "test") for s in (below, above)]
    runs = common(ours, *ends)
    if not runs:
        return None
    share = (target - below) / (above - below) if above > below else 0.0
    own, low, high = (errors(p, runs, conditions, "test") for p in (ours, *ends))
    return target, estimate(own - (1 - share) * low - share * high)


def mean_strength(p: Point) -> float | None:
    """The mean λ over parameters, 0 of Adam; None where it is not known."""
    found = [0.0 if r["method"] == REFERENCE else r.get("mean_lambda") for r in p.values()]
    return None if not found or None in found else float(np.mean([x for x in found if x is not None]))
