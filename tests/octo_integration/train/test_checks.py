"""What is cheap to check is checked first: no bad input waits for the statistics of a data set or a compilation."""

import dataclasses
import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest

from octo_integration import data
from octo_integration.cli import commands
from octo_integration.config import FinetuneConfig, MapsConfig, MeshConfig, OptimizerConfig, to_dict
from octo_integration.data import DataConfig
from octo_integration.evaluate import rollout
from octo_integration.model.config import LoraConfig
from octo_integration.model.sizes import CONFIGS
from octo_integration.policy import policy
from octo_integration.processes import claim
from octo_integration.simulators.metaworld.tasks import TASKS
from octo_integration.train import assemble, checks, loop, profile
from octo_integration.weights import imported
from octo_integration.weights.store import save_params
from tests.octo_integration import micro_vla

EXPENSIVE = ("initial_params", "init_state", "make_train_step", "make_predict")


@pytest.fixture
def spent(monkeypatch):
    """Names of the expensive functions that were called; they do not run."""
    calls = []

    def count(module, name):
        def call(*args, **options):
            calls.append(name)
            raise AssertionError(f"{name} was called")

        monkeypatch.setattr(module, name, call)

    monkeypatch.setitem(CONFIGS, "micro", micro_vla.CONFIG)
    count(data, "compute_statistics")
    for name in EXPENSIVE:
        count(assemble, name)
    for name in ("open_checkpoints", "restore"):
        count(loop.session.checkpoint, name)
    for module in (policy, commands.importlib.import_module("octo_integration.cli.export_weights")):
        count(module, "load_run")
    return calls


def config(out, **changes) -> FinetuneConfig:
    base = FinetuneConfig(str(out), model="micro", weights=None, optimizer=OptimizerConfig(lr=1e-3, steps=10, warmup=2))
    return dataclasses.replace(base, **changes)


def weights_of_another_model(folder: Path) -> str:
    save_params(folder / "other.safetensors", {"bridge": {"fc1": {"kernel": np.zeros((3, 4), np.float32)}}})
    return str(folder / "other.safetensors")


def damaged_weights(folder: Path) -> str:
    (folder / "damaged.safetensors").write_text("no tensors")
    return str(folder / "damaged.safetensors")


def imported_weights_of_another_model(folder: Path) -> str:
    imported.save(folder / "imported" / imported.PARAMS, {"bridge": {"fc1": {"kernel": jax.numpy.zeros((3, 4))}}})
    record = dict.fromkeys(("date", "prismatic", "fresh", "fingerprints")) | {
        "model": "other",
        "modules": {"bridge": {}},
    }
    (folder / "imported" / imported.PROVENANCE).write_text(json.dumps(record))
    return str(folder / "imported")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mesh": MeshConfig(data=3)}, "mesh: data=3"),
        ({"model": "huge"}, "there is no model 'huge'"),
        ({"lora": LoraConfig(rank=2, targets=("nowhere",))}, "lora: target 'nowhere' matches no kernel"),
        ({"weights": "/nowhere.safetensors"}, "there are no weights /nowhere.safetensors"),
        ({"weights": damaged_weights}, "damaged.safetensors is no safetensors file"),
        ({"weights": weights_of_another_model}, r"do not fit the model: missing: .* another shape: bridge/fc1/kernel"),
        (
            {"weights": imported_weights_of_another_model},
            r"are of other: bridge/fc1/bias is \[\], the model has \[128\]",
        ),
        ({"weights": "tiny"}, "do not fit the model"),
        ({"data": DataConfig(image_size=60)}, "image_size 60 is no multiple of the patch size 16"),
        ({"data": DataConfig(path="/nowhere/data")}, "there is no directory /nowhere/data"),
        ({"data": DataConfig(standardize="none")}, "data.standardize is 'none'"),
        ({"data": DataConfig(split="none")}, "split 'none' cannot be had"),
        ({"data": DataConfig(mixture="/nowhere.json")}, "there is no file /nowhere.json"),
        ({"data": DataConfig(cameras=("primary", "wrist"))}, "there is no camera 'wrist'"),
        ({"data": DataConfig(batch_size=4096, streams=4096)}, "cannot be dealt to data.streams=4096"),
        ({"eval_splits": ("heldout", "none")}, "^eval_splits: .*split 'none' cannot be had .*; it has heldout "),
    ],
)
def test_bad_input_costs_nothing_and_leaves_nothing(spent, tmp_path, changes, message):
    changes = {name: value(tmp_path) if callable(value) else value for name, value in changes.items()}
    out = tmp_path / "run"
    for run in (loop.finetune, profile.profile):
        with pytest.raises((ValueError, OSError), match=message) as error:
            run(config(out, **changes))
        assert "\n" not in str(error.value)
    assert spent == [] and not out.exists()


def test_good_input_is_let_through_to_the_statistics(spent, tmp_path):
    with pytest.raises(AssertionError, match="compute_statistics was called"):
        loop.finetune(config(tmp_path / "run", model="tiny", weights="tiny", lora=LoraConfig(rank=2)))
    assert spent == ["compute_statistics"]


def test_streams_are_held_against_the_hosts(spent, tmp_path):
    streams = config(tmp_path, data=DataConfig(streams=2))
    checks.check(streams, hosts=2)
    with pytest.raises(ValueError, match="data.streams is 2, but there are 3 hosts"):
        checks.check(streams, hosts=3)


def test_a_directory_of_something_else_or_of_another_process_costs_nothing(spent, tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="holds thesis.tex, but no run"):
        loop.finetune(config(tmp_path))
    out = tmp_path / "run"
    with claim.held(out), pytest.raises(OSError, match=f"^{out} is in use by process {os.getpid()} on "):
        loop.finetune(config(out))
    assert spent == []


@pytest.mark.parametrize(
    ("name", "before"),
    [("jax_enable_x64", True), ("jax_default_prng_impl", "rbg"), ("jax_threefry_partitionable", False)],
)
def test_a_setting_of_jax_that_changed_is_named(spent, tmp_path, name, before):
    now = getattr(jax.config, name)
    kept = config(tmp_path, data=DataConfig(image_size=64))  # as a run writes it, all decided
    for versions in ({"jax": "0"}, {"jax": "0", name: now}):  # runs from before settings were kept, and the same one
        (tmp_path / "config.json").write_text(json.dumps({**to_dict(kept), "versions": versions}))
        with pytest.raises(AssertionError, match="compute_statistics was called"):
            loop.finetune(config(tmp_path))
    spent.clear()
    record = {**to_dict(kept), "versions": {name: before}}
    (tmp_path / "config.json").write_text(json.dumps(record))
    message = f"holds a run made with {name.upper()}={before}, this process has {now}; set {name.upper()}={before} in"
    with pytest.raises(ValueError, match=message):
        loop.finetune(config(tmp_path))
    assert spent == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["finetune", "--out", "x", "--maps.lambda-max", "-1"], "maps.lambda_max is -1.0; give a finite number"),
        (["finetune", "--out", "x", "--data.batch-size", "0"], "data.batch_size is 0"),
        (["demo", "--lambda-max", "-1"], "maps.lambda_max is -1.0"),
        (["demo", "--steps", "0"], "optimizer.steps is 0"),
        (["inspect", "--lambda-max", "nan"], "lambda_max is nan"),
        (["pretrain", "--frames", "x", "--out", "x", "--lr", "-1"], "lr is -1.0"),
        (["pretrain", "--frames", "x", "--out", "x", "--seed", "-1"], "seed is -1"),
        (["pretrain", "--frames", "x", "--out", "x", "--weight-decay", "nan"], "weight_decay is nan"),
        (["collect", "--out", "x", "--noise", "inf"], "noise is inf"),
        (["collect-frames", "--out", "x", "--count", "0"], "count is 0"),
        (["collect-frames", "--out", "x", "--seed", "-1"], "seed is -1"),
        (["collect-frames", "--out", "x", "--leave-out", "dance"], "unknown task 'dance'"),
        (["collect-frames", "--out", "x", "--leave-out", *TASKS], "leave_out names all tasks"),
        (["evaluate", "--run", "x", "--episodes", "0"], "episodes is 0"),
        (["evaluate", "--run", "x", "--seed", "-1"], "seed is -1"),
    ],
)
def test_numbers_that_make_no_sense_are_refused_by_the_parser(arguments, message, capsys, monkeypatch):
    ran = []
    module, _, name = commands.COMMANDS[arguments[0]].run.partition(":")
    monkeypatch.setattr(commands.importlib.import_module(module), name, ran.append)
    assert commands.main(arguments) == commands.BAD_INPUT and not ran
    assert capsys.readouterr().err.startswith(f"maps-vla {arguments[0]}: {message}")


@pytest.fixture
def run(tmp_path):
    """A run directory as far as the checks look: without a checkpoint."""
    statistics = data.Moments(*(np.arange(4, dtype=np.float32) for _ in range(6)))
    made = data.Statistics(statistics, statistics, 1, 1, "mean_std", "")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text(json.dumps(to_dict(config("run"))))
    both = data.MixtureStatistics({"bridge": made, "fractal": made})
    (tmp_path / "run/statistics.json").write_text(both.to_json())
    return str(tmp_path / "run")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "--shifts", "none", "dark"], "unknown shift 'dark'"),
        (["evaluate", "--tasks", "reach", "fly"], "unknown task 'fly'"),
        (["evaluate", "--shifts", "none", "new_pairs"], "the shift new_pairs needs tasks with coloured shapes"),
        (["evaluate", "--execute", "9"], "execute is 9, but the run predicts 8 steps"),
        (["evaluate", "--dataset", "kuka"], "no data set 'kuka'; give one of bridge, fractal"),
        (["merge", "--out", "x.safetensors"], "was trained without adapters"),
    ],
)
def test_a_run_is_not_loaded_for_what_cannot_be_done_with_it(
    spent, run, arguments, message, capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    assert commands.main([*arguments, "--run", run]) == commands.BAD_INPUT
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert spent == [] and os.listdir(tmp_path) == ["run"]


def test_a_library_that_is_missing_is_told_before_a_run_is_loaded(spent, run, capsys, monkeypatch):
    find = rollout.importlib.util.find_spec
    monkeypatch.setattr(rollout.importlib.util, "find_spec", lambda name: None if name == "imageio" else find(name))
    assert commands.main(["evaluate", "--run", run, "--video", "videos"]) == commands.BAD_INPUT
    assert "needs imageio, which is not installed: pip install 'maps_optax[sim]'" in capsys.readouterr().err
    assert spent == []


def test_a_simulator_that_is_missing_is_told_before_a_run_is_loaded(spent, run, capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("CALVIN_ROOT", raising=False)
    arguments = ["--simulator", "calvin", "--tasks", "D/open_drawer"]
    assert commands.main(["evaluate", "--run", run, *arguments]) == commands.BAD_INPUT
    error = capsys.readouterr().err
    assert "needs CALVIN in the folder CALVIN_ROOT=, which is not installed" in error and error.count("\n") == 1
    assert spent == [] and os.listdir(tmp_path) == ["run"]


@pytest.mark.parametrize("command", ["collect", "collect-frames"])
def test_a_simulator_that_is_missing_is_told_before_anything_is_written(command, capsys, monkeypatch, tmp_path):
    find = rollout.importlib.util.find_spec
    monkeypatch.setattr(rollout.importlib.util, "find_spec", lambda name: None if name == "metaworld" else find(name))
    monkeypatch.setattr("octo_integration.collect.writer.new_dataset", lambda *_, **__: pytest.fail("it was begun"))
    assert commands.main([command, "--out", str(tmp_path / "new" / "data")]) == commands.BAD_INPUT
    assert "needs metaworld, which is not installed: pip install 'maps_optax[sim]'" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_adapters_are_merged_into_a_file_of_tensors_only(spent, run, capsys):
    Path(run, "config.json").write_text(json.dumps(to_dict(config("run", lora=LoraConfig(rank=2), maps=MapsConfig()))))
    assert commands.main(["merge", "--run", run, "--out", "merged"]) == commands.BAD_INPUT
    assert "--out is merged; give a file that ends in .safetensors" in capsys.readouterr().err
    assert spent == []
