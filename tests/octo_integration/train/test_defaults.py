"""Defaults that depend on the model, the steps, the data set and the run that is resumed."""

import dataclasses
import json

import pytest

from octo_integration.cli import demo
from octo_integration.config import FinetuneConfig, MapsConfig, OptimizerConfig, to_dict
from octo_integration.data import DataConfig
from octo_integration.state.optimizer import learning_rate
from octo_integration.train import defaults

SHIPPED = ("heldout", "heldout_texture", "heldout_light", "heldout_camera", "heldout_color")


def test_the_defaults_are_those_of_the_shipped_model_on_the_shipped_data(tmp_path):
    config = defaults.of_data(defaults.of_run(FinetuneConfig("x"), tmp_path))
    assert (config.optimizer.lr, config.optimizer.warmup, config.optimizer.steps) == (1e-3, 20, 400)
    assert (config.model, config.data.image_size, config.data.batch_size) == ("tiny", 64, 8)
    assert config.eval_splits == SHIPPED


def test_the_demo_has_no_defaults_of_its_own():
    """It names what it compares, and measures at the end alone."""
    for method in demo.METHODS:
        job = demo.run_config(demo.Options(), method, seed=2)
        assert job == FinetuneConfig(job.out, seed=2, maps=MapsConfig(method=method), eval_every=job.optimizer.steps)


@pytest.mark.parametrize(("model", "rate"), [("tiny", 1e-3), ("mini", 5e-5)])
def test_a_new_run_records_its_models_learning_rate(tmp_path, model, rate):
    assert defaults.of_run(FinetuneConfig("x", model=model), tmp_path).optimizer.lr == rate


@pytest.mark.parametrize(("steps", "warmup"), [(50_000, 2500), (600, 30), (20, 1), (2, 0)])
def test_warmup_is_a_share_of_the_steps(steps, warmup):
    config = FinetuneConfig("x", optimizer=OptimizerConfig(lr=0.3, steps=steps))
    rate = learning_rate(config)
    assert config.optimizer.warmup_steps == warmup
    assert float(rate(warmup)) == pytest.approx(0.3)


def test_a_config_of_before_is_resumed_with_what_it_had(tmp_path):
    """config.json of a run whose defaults were numbers and names; it may also go on for longer."""
    optimizer, data = OptimizerConfig(lr=3e-4, warmup=30, steps=600), DataConfig(image_size=128)
    old = to_dict(FinetuneConfig("x", "tiny", data=data, optimizer=optimizer, eval_splits=SHIPPED[:2]))
    (tmp_path / "config.json").write_text(json.dumps(old))
    longer = FinetuneConfig("x", optimizer=OptimizerConfig(steps=1200))
    resumed = defaults.of_run(longer, tmp_path)
    assert (resumed.optimizer.lr, resumed.optimizer.warmup, resumed.optimizer.steps) == (3e-4, 30, 1200)
    assert (resumed.model, resumed.data.image_size) == ("tiny", 128)
    assert defaults.of_data(resumed).eval_splits == SHIPPED[:2]


def test_what_is_given_stands(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps(to_dict(FinetuneConfig("x", optimizer=OptimizerConfig(lr=0.7, warmup=7))))
    )
    data = DataConfig(image_size=48)
    given = FinetuneConfig("x", "tiny", data=data, optimizer=OptimizerConfig(lr=0.3, warmup=3), eval_splits=())
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
