"""The predictions of PREREGISTRATION.md on lines whose truth is known."""

import numpy as np
import pytest

from benchmarks.generalization import experiments
from benchmarks.generalization import statistics as st
from benchmarks.generalization.methods import HONEST_METHODS
from octo_integration.evaluate.runs import Interval

PAIRS = [(p, s) for p in (10, 11, 12) for s in (0, 1, 2)]


def lines(method, x, covered, noise=0.001, pairs=PAIRS):
    """Runs with ID error .1 (and luck that all methods of a pair share) and this error under every covered look."""
    rng, found = np.random.default_rng(len(method)), []
    for p, s in pairs:
        luck = 0.01 * p + 0.02 * s
        looks = {c: {"point": [luck + covered + rng.normal(0, noise)]} for c in ("texture", "light", "color")}
        errors = {"none": {"point": [luck + 0.1]}, **looks}
        found.append({"method": method, "x": x, "label": method, "axis": None, "pretrain": p, "seed": s,
                      "l1": {"test": errors}})  # fmt: skip
    return found


def grid(**best):
    """Lines of profile "honest": of every method the number that is best on dev, and one that is not."""
    found = []
    for method, x in best.items():
        for number, error in ((x, 0.1), (x + 1, 0.3)):
            for line in lines(method, number, error, pairs=PAIRS[::4]):
                found.append({**line, "l1": {"dev": line["l1"]["test"]}})
    return found


def test_the_primary_contrast_is_the_gap_at_the_numbers_that_dev_chose():
    # Beside the choice lie, in the same file, points of experiment B with as many runs.
    records = [*lines("adam", 6e-4, 0.2), *lines("linear", 1.5, 0.9), *lines("linear", 3.0, 0.15)]
    table = experiments.honest(records, grid(adam=6e-4, linear=3.0))
    primary = next(
        line for line in table.splitlines() if line.startswith("| gap of linear, x 3 − gap of adam, x 0.0006")
    )
    assert "| −.050 | [−.05" in primary and primary.endswith("| <.001 | 9 | holds |")
    assert "ID of linear, x 3 − adam, x 0.0006 | .000" in table
    others = [record for m in HONEST_METHODS[1:-1] for record in lines(m, 1.0, 0.2)]
    choices = grid(adam=6e-4, linear=3.0, **dict.fromkeys((m for m in HONEST_METHODS[1:-1]), 1.0))
    secondary = experiments.honest([*records, *others], choices).splitlines()[5:]
    assert len(secondary) == 9 and all("survive" in line for line in secondary)
    assert [line for line in secondary if "not survive" in line] == [secondary[-2], secondary[-1]]  # uniform − Adam, ID


def test_runs_that_differ_less_are_told_by_their_spread_within_a_pretraining():
    grids = grid(adam=1e-3, linear=3.0)
    wide, narrow = lines("adam", 1e-3, 0.2, noise=0.1), lines("linear", 3.0, 0.2, noise=0.001)
    said = experiments.honest([*wide, *narrow], grids).splitlines()[0]
    assert said.endswith("(F test: p = .000).")
    alike = experiments.honest([*wide, *[{**r, "method": "linear", "x": 3.0} for r in wide]], grids)
    assert alike.splitlines()[0].endswith("(F test: p = .500).")


def test_seeds_that_are_not_complete_are_left_out_and_too_few_give_nothing():
    full, part = lines("adam", 1e-3, 0.2), lines("linear", 3.0, 0.1, pairs=PAIRS[:-1])
    points = [(1.0, st.point(part, "linear", 3.0)), (-1.0, st.point(full, "adam", 1e-3))]
    assert experiments.table_of(points, ("none",)).shape == (3, 2)
    assert experiments.contrast("", points, ("none",)).runs == 6
    few = [(1.0, st.point(lines("linear", 3.0, 0.1, pairs=PAIRS[:3]), "linear", 3.0))]
    assert experiments.table_of(few, ("none",)) is None
    assert experiments.honest(full, grid(adam=1e-3)) == experiments.honest([], []) == ""


def cells(linear, uniform=0.2, frozen=0.2):
    return {
        cell: [*lines("linear", 3.0, value), *lines("uniform", 2.0, uniform), *lines("frozen-vision", 1e-3, frozen)]
        for cell, value in zip(experiments.CELLS, linear, strict=True)
    }


def test_who_must_move_is_a_difference_of_differences():
    # Cells: without motion words (camera as pretrained, turned), with them (the same).
    table = experiments.who(cells([0.15, 0.17, 0.20, 0.22]))
    first, second = (line for line in table.splitlines() if line.startswith(("| 1:", "| 2:")))
    assert "| −.050 |" in first and first.endswith("| 9 | holds |")
    assert "| .020 |" in second and second.endswith("the opposite holds |")
    assert experiments.who({"still": lines("linear", 3.0, 0.1)}) == ""


@pytest.mark.parametrize(
    ("low", "high", "says"),
    [
        (-0.05, -0.01, "holds"),
        (0.01, 0.05, "the opposite holds"),
        (-0.02, 0.01, "undecided"),
        (-0.01, 0.012, "no difference of .015"),
    ],
)
def test_an_interval_that_holds_nothing_is_not_the_same_as_no_difference(low, high, says):
    assert experiments.verdict(Interval((low + high) / 2, low, high, 0.5, 4.0), -1) == says
