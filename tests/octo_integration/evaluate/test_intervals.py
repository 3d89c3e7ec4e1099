"""Wilson's interval, and Student's."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octo_integration.evaluate.intervals import t_interval, wilson_interval


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


def test_t_interval_of_known_cases() -> None:
    # scipy.stats.t.interval(0.95, n - 1, mean, sem); the quantiles for 3 and 2 values are 4.302653 and 12.706205
    np.testing.assert_allclose(
        t_interval(np.array([1.0, 2.0, 3.0])), (2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), rtol=1e-6
    )
    np.testing.assert_allclose(t_interval(np.array([0.0, 2.0])), (1 - 12.706205, 1 + 12.706205), rtol=1e-6)
    with pytest.raises(ValueError, match="two values or more, not 1"):
        t_interval(np.ones(1))


def test_nineteen_of_twenty_t_intervals_of_three_values_cover_the_mean() -> None:
    samples = np.random.default_rng(0).normal(5.0, 2.0, (4000, 3))
    covered = [low <= 5.0 <= high for low, high in map(t_interval, samples)]
    assert 0.94 < np.mean(covered) < 0.96
