"""The config tree: what it refuses, and that it survives JSON."""

import dataclasses
import json

import pytest

from octo_integration.config import (
    FinetuneConfig,
    MapsConfig,
    OptimizerConfig,
    differences,
    from_dict,
    read_config,
    to_dict,
)

CONFIG = FinetuneConfig(
    out="runs/x",
    weights=None,
    optimizer=OptimizerConfig(betas=(0.8, 0.9)),
    maps=MapsConfig(method="l2_sp", max_pull=1.0, anchor_dtype="bfloat16"),
    eval_splits=("train[20:]",),
)


@pytest.mark.parametrize("config", [CONFIG, FinetuneConfig(out="y"), FinetuneConfig(out="z", eval_splits=())])
def test_json_gives_back_an_equal_config(config):
    assert from_dict(FinetuneConfig, json.loads(json.dumps(to_dict(config)))) == config


def test_a_field_of_another_version_is_named():
    values = to_dict(CONFIG)
    values["maps"]["lambda_min"] = 1.0
    with pytest.raises(ValueError, match="config.maps: unknown field 'lambda_min'"):
        from_dict(FinetuneConfig, values)


def test_differences_are_named_with_both_values():
    other = dataclasses.replace(CONFIG, seed=1, maps=dataclasses.replace(CONFIG.maps, max_pull=None))
    assert differences(CONFIG, other) == [("maps.max_pull", 1.0, None), ("seed", 0, 1)]
    assert differences(CONFIG, CONFIG) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"log_every": 0}, "log_every is 0"),
        ({"optimizer": {"steps": 0}}, "optimizer.steps is 0"),
        ({"optimizer": {"steps": 10, "warmup": 10}}, "optimizer.warmup is 10 of 10"),
        ({"optimizer": {"lr": float("nan")}}, "optimizer.lr is nan"),
        ({"optimizer": {"clip": 0.0}}, "optimizer.clip is 0.0"),
        ({"optimizer": {"accumulate": 0}}, "optimizer.accumulate is 0"),
        ({"optimizer": {"lr": -1.0}}, "optimizer.lr is -1.0; give a finite number above 0"),
        ({"optimizer": {"lr": float("inf")}}, "optimizer.lr is inf"),
        ({"optimizer": {"weight_decay": -0.1}}, "optimizer.weight_decay is -0.1; give a finite number of at least 0"),
        ({"optimizer": {"weight_decay": float("nan")}}, "optimizer.weight_decay is nan"),
        ({"optimizer": {"betas": [0.9, 1.0]}}, r"optimizer.betas is \(0.9, 1.0\); give .* below 1"),
        ({"maps": {"lambda_max": -1.0}}, "maps.lambda_max is -1.0; give a finite number of at least 0"),
        ({"maps": {"lambda_max": float("nan")}}, "maps.lambda_max is nan"),
        ({"maps": {"max_pull": 0.0}}, "maps.max_pull is 0.0"),
        ({"lora": {"rank": -1}}, "lora.rank is -1"),
        ({"lora": {"alpha": 0.0}}, "lora.alpha is 0.0"),
        ({"mesh": {"data": 0}}, "mesh.data is 0; give a number of at least 1, or -1"),
        ({"mesh": {"fsdp": -2}}, "mesh.fsdp is -2"),
        ({"mesh": {"processes": 0}}, "mesh.processes is 0"),
        ({"mesh": {"process": -1}}, "mesh.process is -1"),
        ({"seed": -1}, "seed is -1; give 0 <= seed"),
        ({"data": {"batch_size": 0}}, "data.batch_size is 0"),
        ({"data": {"goal": True, "drop_goal": float("nan")}}, "data.drop_goal nan"),
    ],
)
def test_senseless_values_are_refused_at_once(change, message):
    with pytest.raises(ValueError, match=message):
        from_dict(FinetuneConfig, {"out": "x", **change})


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="give the --out folder of a finetune run"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        read_config(tmp_path)
