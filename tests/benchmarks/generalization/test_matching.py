"""Paths: where they begin, and what is compared at equal mean λ."""

import pytest

from benchmarks.generalization import matching
from benchmarks.generalization import statistics as st


def test_a_path_goes_through_adam(study):
    assert list(matching.path_points(study, "linear"))[:2] == [0.0, 0.5]
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
