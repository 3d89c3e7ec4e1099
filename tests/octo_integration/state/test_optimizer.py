"""The optimizer's schedule, and what decays."""

import pytest

from octo_integration.config import FinetuneConfig, OptimizerConfig
from octo_integration.model.sizes import CONFIGS
from octo_integration.state.optimizer import decay_mask, learning_rate, peak_rate
from tests.octo_integration import micro


def test_learning_rate_warms_up_and_decays():
    rate = learning_rate(FinetuneConfig("x", optimizer=OptimizerConfig(lr=2e-3, warmup=10, steps=100)))
    assert [float(rate(i)) for i in (0, 5, 10, 100)] == pytest.approx([0.0, 1e-3, 2e-3, 2e-4])


RATES = {"tiny": 1e-3, "tiny_clip": 1e-3, "small": 3e-4, "mini": 5e-5, "openvla": 5e-5, "octo_small": 3e-4}
RATES |= {"nano": 5e-5, "nano_8": 5e-5}


@pytest.mark.parametrize("model", RATES)
def test_without_one_the_peak_is_the_models_own(model):
    config = FinetuneConfig("x", model=model)
    assert peak_rate(config) == RATES[model]
    assert float(learning_rate(config)(config.optimizer.warmup_steps)) == pytest.approx(RATES[model])
    given = FinetuneConfig("x", model=model, optimizer=OptimizerConfig(lr=0.2))
    assert float(learning_rate(given)(given.optimizer.warmup_steps)) == pytest.approx(0.2)


def test_every_model_has_one():
    assert set(CONFIGS) - {"micro"} == set(RATES)


def test_the_peak_of_no_model_names_those_that_there_are():
    with pytest.raises(ValueError, match="there is no model 'large'; there are: .*mini, "):
        peak_rate(FinetuneConfig("x", model="large"))


def test_weight_decay_spares_biases_though_scan_stacks_them_into_matrices():
    params = micro.params()
    assert params["vision"]["blocks"]["fc"]["bias"].ndim == 2
    mask = decay_mask(params)
    assert mask["vision"]["blocks"]["fc"] == {"kernel": True, "bias": False}
