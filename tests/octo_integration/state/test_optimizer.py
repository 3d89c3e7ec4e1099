"""The optimizer's schedule, and what decays."""

import pytest

from octo_integration.config import OptimizerConfig
from octo_integration.state.optimizer import decay_mask, learning_rate
from tests.octo_integration import micro


def test_learning_rate_warms_up_and_decays():
    rate = learning_rate(OptimizerConfig(lr=2e-3, warmup=10, steps=100))
    assert [float(rate(i)) for i in (0, 5, 10, 100)] == pytest.approx([0.0, 1e-3, 2e-3, 2e-4])


def test_weight_decay_spares_biases_though_scan_stacks_them_into_matrices():
    params = micro.params()
    assert params["vision"]["blocks"]["fc"]["bias"].ndim == 2
    mask = decay_mask(params)
    assert mask["vision"]["blocks"]["fc"] == {"kernel": True, "bias": False}
