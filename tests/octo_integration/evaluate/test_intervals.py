"""Intervals: of known cases, and how often they hold the truth."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octo_integration.evaluate.intervals import (
    difference_interval,
    paired_interval,
    rate_interval,
    wilson_interval,
)
from octo_integration.evaluate.runs import student_interval


def test_wilson_interval_of_known_cases() -> None:
    # statsmodels.stats.proportion.proportion_confint(k, n, method="wilson")
    np.testing.assert_allclose(wilson_interval(8, 10), (0.490162, 0.943318), atol=1e-6)
    np.testing.assert_allclose(wilson_interval(0, 10), (0, 0.277533), atol=1e-6)
    np.testing.assert_allclose(wilson_interval(20, 20), (0.838875, 1), atol=1e-6)
    for successes, n in ((1, 0), (-1, 4), (5, 4)):
        with pytest.raises(ValueError, match="give 0 <= successes <= n"):
            wilson_interval(successes, n)


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_inverts_the_score_test(case: tuple[int, int]) -> None:
    successes, n = case
    low, high = wilson_interval(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    for edge in (low, high):
        if 0 < edge < 1:
            score = abs(successes / n - edge) / math.sqrt(edge * (1 - edge) / n)
            assert score == pytest.approx(1.96, abs=1e-3)


def test_a_suite_is_as_uncertain_as_its_tasks_differ_and_never_less_than_its_episodes() -> None:
    apart = [[True] * 10, [False] * 10, [True] * 5 + [False] * 5]
    _, low, high, *_ = student_interval([1, 0, 0.5])
    assert rate_interval(apart) == (max(low, 0), min(high, 1)) == (0, 1)
    alike = [[False] * 10] * 10
    assert rate_interval(alike) == wilson_interval(0, 100)
    assert rate_interval(alike[:1]) == wilson_interval(0, 10)


def test_pairs_that_never_differ_do_not_prove_that_they_are_the_same() -> None:
    # (n12 + 1) / (n + 2) = (n21 + 1) / (n + 2) = 1 / 12
    half = 1.959964 * math.sqrt((2 / 12) / 12)
    np.testing.assert_allclose(paired_interval([True] * 10, [True] * 10), (-half, half), atol=1e-6)
    # p = 4 / 12, q = 1 / 12
    half = 1.959964 * math.sqrt((5 / 12 - (3 / 12) ** 2) / 12)
    first, second = [True] * 7 + [False] * 3, [True] * 4 + [False] * 6
    np.testing.assert_allclose(paired_interval(first, second), (0.25 - half, 0.25 + half), atol=1e-6)
    with pytest.raises(ValueError, match="give pairs"):
        paired_interval([True], [])


def test_a_difference_over_tasks() -> None:
    tasks = [([True] * 4, [False] * 4), ([True, False] * 2, [True, False] * 2)]
    assert difference_interval(tasks) == (-1, 1)  # two tasks tell nothing of others
    same = [([True, False], [True, False])] * 10
    assert difference_interval(same) == paired_interval([True, False] * 10, [True, False] * 10)


def test_intervals_over_tasks_hold_the_rate_of_tasks_like_them() -> None:
    """Where tasks differ much, Wilson's of all episodes holds it in half of the draws, this one in 92 % or more."""
    rng = np.random.default_rng(0)
    held = pooled = 0
    for _ in range(500):
        tasks = [list(rng.random(50) < p) for p in rng.beta(1, 1, 10)]
        low, high = rate_interval(tasks)
        held += low <= 0.5 <= high
        low, high = wilson_interval(sum(map(sum, tasks)), 500)
        pooled += low <= 0.5 <= high
    assert held / 500 > 0.92 and pooled / 500 < 0.6
