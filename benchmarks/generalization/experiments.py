"""What PREREGISTRATION.md predicts, answered from the lines of its runs."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.generalization import statistics as st
from benchmarks.generalization.choice import covered
from benchmarks.generalization.methods import HONEST_METHODS
from benchmarks.generalization.statistics import Point, Record
from benchmarks.generalization.tables import label, markdown, number
from octo_integration.evaluate.runs import Interval, crossed_interval, survivors

COUNTS = 0.015  # the smallest difference of gap that counts
HELD, REFERENCE = "linear", "adam"
GRID = "honest"
CELLS = ("still", "still_turned", "motion", "motion_turned")
LINEAR, UNIFORM, FROZEN = ("linear", 3.0), ("uniform", 2.0), ("frozen-vision", 1e-3)


class Contrast(NamedTuple):
    """A difference of means: what it is, its interval over pretrainings and seeds, and how many runs it is from."""

    name: str
    interval: Interval
    runs: int


def chosen(records: Sequence[Record], grid: Sequence[Record], method: str) -> Point:
    """The runs of a method at the number that `grid`, the lines of profile "honest", chooses; empty without any."""
    if not any(r["method"] == method for r in grid):
        return {}
    return st.point(records, method, st.select(grid, method, covered))


def table_of(terms: Sequence[tuple[float, Point]], conditions: Sequence[str]) -> np.ndarray | None:
    """f[P, S]: the weighted sum of errors, of the pretrainings and seeds that all terms have; None below 2 by 2."""
    points = [st.measured(p, conditions, "test") for _, p in terms]
    runs = set(st.common(*points))
    pretrained = sorted({p for p, _ in runs})
    seeds = sorted(s for s in {s for _, s in runs} if all((p, s) in runs for p in pretrained))
    if min(len(pretrained), len(seeds)) < 2:
        return None
    order = tuple((p, s) for p in pretrained for s in seeds)
    total = sum(weight * st.errors(p, order, conditions, "test") for (weight, _), p in zip(terms, points, strict=True))
    return np.asarray(total).reshape(len(pretrained), len(seeds))


def contrast(name: str, terms: Sequence[tuple[float, Point]], conditions: Sequence[str]) -> Contrast | None:
    """Of the weighted sum of errors; None without a table of at least 2 by 2."""
    table = table_of(terms, conditions)
    return None if table is None else Contrast(name, crossed_interval(table), table.size)


def verdict(interval: Interval, predicted: int) -> str:
    """What a prediction of this sign is left with."""
    low, high = sorted((predicted * interval.low, predicted * interval.high))
    if low > 0:
        return "holds"
    if high < 0:
        return "the opposite holds"
    return "undecided" if max(-low, high) > COUNTS else f"no difference of {number(COUNTS)}"


def honest(records: Sequence[Record], grid: Sequence[Record]) -> str:
    """Experiment A: the primary contrast, its nine secondary ones, and the spread of runs.

    Args:
      records: of the first cell, where B's points lie beside A's choices.
      grid: as of `chosen`.
    """
    maps, adam, uniform = (chosen(records, grid, method) for method in (HELD, REFERENCE, "uniform"))
    if not maps or not adam:
        return ""
    primary = contrast(f"gap of {label(maps)} − gap of {label(adam)}", [(1, maps), (-1, adam)], st.GAP)
    others = [p for m in HONEST_METHODS if m != HELD and (p := chosen(records, grid, m))]
    found = [contrast(f"gap of {label(maps)} − {label(p)}", [(1, maps), (-1, p)], st.GAP) for p in others]
    found += (
        [contrast(f"gap of {label(uniform)} − {label(adam)}", [(1, uniform), (-1, adam)], st.GAP)] if uniform else []
    )
    found += [contrast(f"ID of {label(maps)} − {label(adam)}", [(1, maps), (-1, adam)], st.ID)]
    secondary = [c for c in found if c]
    kept = survivors([c.interval.p for c in secondary])
    rows = [_row(primary, verdict(primary.interval, -1))] if primary else []
    rows += [_row(c, "survives" if k else "does not survive") for c, k in zip(secondary, kept, strict=True)]
    note = f"The first is the primary contrast, predicted below 0; the others are one table.{steadier(maps, adam)}"
    return markdown(HEADER, rows, note)


def steadier(maps: Point, adam: Point) -> str:
    """The prediction that runs of MAPS differ less in their gap: one-sided F of the variances within pretrainings."""
    import scipy.special  # half a second, which `run` need not wait for

    tables = [table_of([(1, p)], st.GAP) for p in (adam, maps)]
    if any(table is None for table in tables):
        return ""
    of_adam, of_maps = (float(np.var(table, axis=1, ddof=1).mean()) for table in tables if table is not None)
    freedoms = [table.shape[0] * (table.shape[1] - 1) for table in tables if table is not None]
    p = float(scipy.special.fdtrc(*freedoms, of_adam / of_maps))
    deviations = " and ".join(number(x**0.5) for x in (of_adam, of_maps))
    return f" Gaps of Adam's and MAPS' runs differ within a pretraining by {deviations} (F test: p = {number(p)})."


def who(cells: Mapping[str, Sequence[Record]]) -> str:
    """Experiment B: its two predictions."""
    points = {(cell, m): st.point(cells.get(cell, ()), *m) for cell in CELLS for m in (LINEAR, UNIFORM, FROZEN)}
    if not all(points.values()):
        return ""

    def apart(cell: str, other: tuple[str, float], sign: float) -> list[tuple[float, Point]]:
        return [(sign / 2, points[cell, LINEAR]), (-sign / 2, points[cell, other])]

    words = [(cell, 1 if cell.startswith("still") else -1) for cell in CELLS]
    cameras = [(cell, 1 if cell.endswith("turned") else -1) for cell in CELLS]
    predictions = {
        "1: linear 3 − uniform 2, without motion words less with them": [
            t for c, s in words for t in apart(c, UNIFORM, s)
        ],
        "2: linear 3 − frozen, camera turned less as pretrained": [t for c, s in cameras for t in apart(c, FROZEN, s)],
    }
    found = [contrast(name, terms, st.COVERED) for name, terms in predictions.items()]
    rows = [_row(c, verdict(c.interval, -1)) for c in found if c]
    return markdown(HEADER, rows, "Covered error; each is predicted below 0, and one test.")


HEADER = ("", "difference", "95 %", "p", "runs", "")


def _row(c: Contrast, says: str) -> list[str]:
    ends = f"[{number(c.interval.low)}, {number(c.interval.high)}]"
    p = number(c.interval.p) if c.interval.p >= 0.001 else "<.001"
    return [c.name, number(c.interval.value), ends, p, str(c.runs), says]
