"""Paths whose relation is known: what they attain, and the verdicts on them."""

import numpy as np
import pytest

from benchmarks.generalization import matching
from benchmarks.generalization import statistics as st


def test_what_a_path_attains():
    inside, outside = np.array([[1.0, 0.8, 1.2, 2.0]]), np.array([[3.0, 2.5, 1.0, 1.5]])
    levels = np.array([[0.5, 0.8, 0.9, 1.0, 1.2, 3.0]])
    shares = matching.attainable(inside, outside, levels)
    np.testing.assert_allclose(shares.sum(-1), 1)
    attained = (shares @ outside[0])[0]
    # Not at all (its smallest ID error), there, between the 2nd and 3rd, and never worse with more room.
    np.testing.assert_allclose(attained, [2.5, 2.5, 2.5 - 1.5 * 0.25, 2.5 - 1.5 * 0.5, 1.0, 1.0])
    np.testing.assert_allclose((shares @ inside[0])[0, 1:5], levels[0, 1:5])
    single = matching.attainable(np.array([[1.0]]), np.array([[2.0]]), np.array([[0.5, 1.5]]))
    np.testing.assert_array_equal(single, np.ones((1, 2, 1)))


def pair(synthetic, a, b, runs=None, noise=0.0005, **options):
    """Verdict of path a against path b, each (ID, OOD) functions of λ."""
    runs = runs or synthetic.runs
    records = synthetic.points("adam", runs, noise=noise)
    records += synthetic.path("linear", "a", *a, runs=runs, noise=noise, **options)
    records += synthetic.path("uniform", "b", *b, runs=runs, noise=noise, **options)
    return matching.compare(records, "linear", "uniform", st.COVERED), matching.compare(
        records, "uniform", "linear", st.COVERED
    )


def test_a_path_below_another_dominates_it(synthetic):
    better = (lambda x: 0.003 * x, lambda x: -0.7 * x / (x + 1))
    worse = (lambda x: 0.003 * x, lambda x: -0.4 * x / (x + 1))
    found, back = pair(synthetic, better, worse)
    assert (found.verdict, back.verdict) == ("dominates", "is dominated")
    assert found.average.clear and found.average.value < 0 and found.share >= 0.9
    assert found.average.value == pytest.approx(-back.average.value)
    assert abs(found.inside.value) < 0.002  # the paths' ID errors reach over .024
    assert np.all(np.diff(found.levels) > -1e-3)


def test_equal_paths_are_undecided_even_if_one_has_other_points(synthetic):
    path = (lambda x: 0.003 * x, lambda x: -0.5 * x / (x + 1))
    for found in pair(synthetic, path, path):
        assert found.verdict == "crosses/undecided"
        assert abs(found.average.value) < 0.002


def test_crossing_paths_are_undecided(synthetic):
    # At small ID errors the one is better, at large ones the other.
    early = (lambda x: 0.003 * x, lambda x: -0.3 * min(x, 1.0))
    late = (lambda x: 0.003 * x, lambda x: -0.11 * x)
    found, back = pair(synthetic, early, late)
    assert found.verdict == back.verdict == "crosses/undecided"
    signs = {np.sign(e.value) for e in found.differences if e.clear}
    assert signs == {-1, 1}


def test_a_strength_that_overshoots_does_not_hurt_the_path(synthetic):
    # λ = 8 is terrible in both errors; what λ ≤ 4 attains is all that counts.
    good = (lambda x: 0.003 * x if x < 8 else 0.1, lambda x: -0.7 * x / (x + 1) if x < 8 else 2.0)
    worse = (lambda x: 0.003 * x, lambda x: -0.4 * x / (x + 1))
    assert pair(synthetic, good, worse)[0].verdict == "dominates"


def test_points_without_common_id_error(synthetic):
    adam = synthetic.points("adam", noise=0.0005)
    trade = synthetic.points("frozen", inside=0.05, outside=-0.5, noise=0.0005)
    found = matching.compare(adam + trade, "frozen", "adam", ("all",))
    assert found.verdict == "no overlap"
    assert found.average.value < 0 < found.inside.value
    both = synthetic.points("frozen", inside=-0.01, outside=-0.5, noise=0.0005)
    assert matching.compare(adam + both, "frozen", "adam", ("all",)).verdict == "dominates"
    assert matching.compare(adam + both, "adam", "frozen", ("all",)).verdict == "is dominated"


def test_many_points_that_do_nothing_do_not_beat_one(synthetic):
    found = []
    for study in range(20):
        runs = tuple((p, 100 * study + s) for p, s in synthetic.runs)
        records = synthetic.points("adam", runs)
        records += synthetic.path("idle", "idle", lambda x: 0.0, lambda x: 0.0, runs=runs)
        found.append(matching.compare(records, "idle", "adam", st.COVERED))
    assert sum(f.verdict == "dominates" for f in found) <= 3
    # With places and values from the same runs it is -.0021.
    assert abs(np.mean([f.average.value for f in found])) < 0.0015


def test_paths_of_an_unfinished_study(synthetic):
    better = (lambda x: 0.003 * x, lambda x: -0.7 * x / (x + 1))
    worse = (lambda x: 0.003 * x, lambda x: -0.4 * x / (x + 1))
    records = synthetic.points("adam", noise=0.0005)
    records += synthetic.path("linear", "a", *better, noise=0.0005)
    records += synthetic.path("uniform", "b", *worse, (0.5, 1.0, 2.0, 4.0), noise=0.0005)
    records += synthetic.path("uniform", "b", *worse, (8.0,), runs=synthetic.runs[:1], noise=0.0005)
    assert matching.compare(records, "linear", "uniform", st.COVERED).verdict == "dominates"
    one = [r for r in records if r["seed"] == 0]
    assert matching.compare(one, "linear", "uniform", st.COVERED).verdict == "crosses/undecided"
    assert matching.compare(records, "linear", "absent", st.COVERED).verdict == "no overlap"


def test_a_path_goes_through_adam(study):
    assert list(matching.path_points(study, "linear"))[:2] == [0.0, 0.5]
    assert list(matching.path_points(study, "linear", off=False))[0] == 0.5
    assert list(matching.path_points(study, "wise-ft"))[-1] == 1.0
    assert list(matching.path_points(study, "low-lr")) == [3e-4, 1e-3]
    assert list(matching.path_points(study, "lora")) == [16.0]
    assert list(matching.path_points(study, "adam")) == [None]


def test_equal_mean_strength_is_interpolated(synthetic):
    # The mean λ of linear is half its λ_max. Uniform at 1.25, between 1 and 1.5, is linear at 2.5 and .05 better.
    records = synthetic.points("adam", noise=0.0)
    records += synthetic.path("uniform", "b", lambda x: 0.1 * x, lambda x: 0.0, noise=0.0, shared=0.0)
    records += synthetic.path("linear", "a", lambda x: 0.05 * x + 0.05, lambda x: 0.0, (2.5, 20.0), 0.5,
                              noise=0.0, shared=0.0)  # fmt: skip
    strength, e = matching.at_strength(records, "linear", 2.5, "uniform", st.ID)
    assert strength == 1.25
    assert e.value == pytest.approx(0.05, abs=1e-9)
    assert matching.at_strength(records, "linear", 20.0, "uniform", st.ID) is None  # mean λ 10: beyond 8
