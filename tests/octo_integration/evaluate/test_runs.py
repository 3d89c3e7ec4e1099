"""Intervals over runs: that 95 % of them cover, whatever varies, and what of many survives."""

import numpy as np
import pytest

from octo_integration.evaluate.runs import crossed_interval, student_interval, survivors

STUDIES = 2500  # a share of .95 has a standard error of .0044
PRETRAININGS = (0, 0, 0, 1, 1)  # of the runs of benchmarks/generalization
EFFECT = -0.03


def coverage(draw, interval) -> float:
    rng = np.random.default_rng(0)
    found = [interval(draw(rng)) for _ in range(STUDIES)]
    return float(np.mean([e.low <= EFFECT <= e.high for e in found]))


@pytest.mark.parametrize("of_runs", [0.0, 0.005, 0.05, 0.5])
def test_five_runs_cover_whatever_their_episodes_add(of_runs):
    """36 episodes of deviation .03 in each run: from nothing but them to a hundred times their mean's deviation."""

    def draw(rng):
        return EFFECT + rng.normal(0, of_runs, 5) + rng.normal(0, 0.03, (5, 36)).mean(1)

    assert coverage(draw, student_interval) == pytest.approx(0.95, abs=0.02)


def test_five_runs_cover_a_rate_of_twelve_successes_each():
    def draw(rng):
        luck = rng.uniform(-0.2, 0.2, (2, 5))  # of the runs, whose rates are .5 and .47 on average
        return np.subtract(*rng.binomial(12, np.array([[0.5 + EFFECT], [0.5]]) + luck)) / 12

    assert coverage(draw, student_interval) == pytest.approx(0.95, abs=0.02)


def test_runs_of_few_pretrainings_say_nothing_of_others():
    def draw(rng):
        return EFFECT + rng.normal(0, 0.05, 2)[list(PRETRAININGS)] + rng.normal(0, 0.01, 5)

    assert coverage(draw, lambda d: student_interval(d, PRETRAININGS)) == pytest.approx(0.95, abs=0.02)
    assert coverage(draw, student_interval) < 0.8


@pytest.mark.parametrize("rows, columns", [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (5.0, 5.0), (5.0, 0.0)])
def test_three_pretrainings_by_three_seeds_cover(rows, columns):
    def draw(rng):
        return EFFECT + rng.normal(0, rows, (3, 1)) + rng.normal(0, columns, (1, 3)) + rng.normal(0, 1, (3, 3))

    assert coverage(draw, crossed_interval) == pytest.approx(0.95, abs=0.02)
    assert coverage(draw, lambda d: student_interval(d.ravel())) < 0.85


def test_crossed_luck_that_is_not_there_makes_the_interval_wider():
    assert 0.95 < coverage(lambda rng: EFFECT + rng.normal(0, 1, (3, 3)), crossed_interval) < 0.985


def test_the_interval_of_a_textbook():
    e = student_interval([1.0, 2.0, 3.0, 4.0, 5.0])  # s / sqrt(n) = .7071, t(4) = 2.776
    assert e.value == 3.0 and e.freedom == 4
    assert (e.low, e.high) == pytest.approx((1.0368, 4.9632), abs=1e-4)
    assert e.p == pytest.approx(0.013236, abs=1e-6)
    e = student_interval([0.2, 0.5, 0.6])  # t(2) = 4.302653, variance .13 / 3
    assert (e.low, e.high) == pytest.approx((1.3 / 3 - 0.517108, 1.3 / 3 + 0.517108), abs=1e-5)
    assert student_interval([0.0, 0.0, 1.0], ["a", "a", "b"]) == student_interval([0.0, 1.0])


def test_what_has_no_interval():
    assert np.isnan(student_interval([1.0])[1:4]).all()
    assert np.isnan(student_interval([1.0, np.nan])[:4]).all()
    assert np.isnan(crossed_interval([[1.0, np.inf], [0.0, 1.0]])[1:4]).all()
    assert student_interval([0.0, 0.0]) == (0.0, 0.0, 0.0, 1.0, 1)
    with pytest.raises(ValueError, match=r"shape \(1, 3\); give f\[P, S\]"):
        crossed_interval([[1.0, 2.0, 3.0]])


def test_what_survives():
    # The ladder of five tests is .01, .02, .03, .04, .05: .029 is below its step, and takes .021 with it.
    assert survivors([0.029, 0.021, 0.5, 0.001, np.nan, 0.2]).tolist() == [True, True, False, True, False, False]
    assert survivors([0.04, 0.03]).tolist() == [True, True]
    assert survivors([0.04, 0.06]).tolist() == [False, False]
    assert survivors([]).shape == (0,)


def test_false_marks_are_rare_among_many_that_do_nothing():
    rng = np.random.default_rng(0)
    marked = [survivors([student_interval(d).p for d in rng.normal(0, 1, (40, 5))]).any() for _ in range(100)]
    assert np.mean(marked) < 0.1
