"""Defaults that depend on the steps, the data set and the run that is resumed."""

import dataclasses
import json

import pytest

from octo_integration.config import FinetuneConfig, OptimizerConfig, to_dict
from octo_integration.data import DataConfig
from octo_integration.state.optimizer import learning_rate
from octo_integration.train import defaults

SHIPPED = ("heldout", "heldout_texture", "heldout_light", "heldout_camera", "heldout_color")


def test_the_defaults_give_the_numbers_they_always_gave(tmp_path):
    config = defaults.of_data(defaults.of_run(FinetuneConfig("x"), tmp_path))
    assert (config.optimizer.warmup, config.optimizer.steps) == (30, 600)
    assert config.eval_splits == SHIPPED


@pytest.mark.parametrize(("steps", "warmup"), [(50_000, 2500), (600, 30), (20, 1), (2, 0)])
def test_warmup_is_a_share_of_the_steps(steps, warmup):
    optimizer = FinetuneConfig("x", optimizer=OptimizerConfig(steps=steps)).optimizer
    rate = learning_rate(optimizer)
    assert optimizer.warmup_steps == warmup
    assert float(rate(warmup)) == pytest.approx(optimizer.lr)


def test_a_config_of_before_is_resumed_with_what_it_had(tmp_path):
    """config.json of a run whose defaults were numbers and names; it may also go on for longer."""
    old = to_dict(FinetuneConfig("x", optimizer=OptimizerConfig(warmup=30, steps=600), eval_splits=SHIPPED[:2]))
    (tmp_path / "config.json").write_text(json.dumps(old))
    longer = FinetuneConfig("x", optimizer=OptimizerConfig(steps=1200))
    resumed = defaults.of_run(longer, tmp_path)
    assert (resumed.optimizer.warmup, resumed.optimizer.steps) == (30, 1200)
    assert defaults.of_data(resumed).eval_splits == SHIPPED[:2]


def test_what_is_given_stands(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(to_dict(FinetuneConfig("x", optimizer=OptimizerConfig(warmup=7)))))
    given = FinetuneConfig("x", optimizer=OptimizerConfig(warmup=3), eval_splits=())
    assert defaults.of_data(defaults.of_run(given, tmp_path)) == given


def test_other_data_have_other_splits(bridge_path):
    data = DataConfig(path=bridge_path, standardize="bridge", split="train[:20]")
    assert defaults.of_data(FinetuneConfig("x", data=data)).eval_splits == ("val",)


def test_of_a_mixture_each_data_set_has_those_that_none_learns_from(tmp_path):
    rows = [
        {"name": "a", "path": "demo", "standardize": "metaworld", "weight": 1, "split": "train"},
        {"name": "b", "path": "demo", "standardize": "metaworld", "weight": 1, "split": "heldout_light+heldout[:5]"},
    ]
    (tmp_path / "mixture.json").write_text(json.dumps(rows))
    config = FinetuneConfig("x", data=DataConfig(mixture=str(tmp_path / "mixture.json")))
    names = [f"{member}/heldout_{shift}" for member in "ab" for shift in ("texture", "camera", "color")]
    assert list(defaults.of_data(config).eval_splits) == names


def test_a_run_that_learns_from_all_is_not_measured():
    data = DataConfig(split="+".join(("train", *SHIPPED)))
    assert defaults.of_data(dataclasses.replace(FinetuneConfig("x"), data=data)).eval_splits == ()
