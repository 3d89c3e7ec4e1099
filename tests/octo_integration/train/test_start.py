"""A run that goes on from another one: what it starts from, what it is held near, and which runs are refused."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from octo_integration.cli import commands
from octo_integration.config import FinetuneConfig, MapsConfig, OptimizerConfig, read_config
from octo_integration.data import DataConfig
from octo_integration.model.config import LoraConfig
from octo_integration.model.sizes import CONFIGS
from octo_integration.policy.trained import load_run
from octo_integration.state import lora, start
from octo_integration.train import loop, run_directory
from tests.octo_integration import micro_vla

ONE_TOWER = dataclasses.replace(micro_vla.CONFIG, dinov2=None)


@pytest.fixture(autouse=True, scope="module")
def _micro_model(tmp_path_factory):
    cache = str(tmp_path_factory.mktemp("cache"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CONFIGS, "micro", ONE_TOWER)
        patch.setenv("XDG_CACHE_HOME", cache)
        yield


def config(out: Path, steps: int = 2, **changes) -> FinetuneConfig:
    base = FinetuneConfig(
        str(out),
        model=None,
        data=DataConfig(batch_size=4),
        optimizer=OptimizerConfig(lr=3e-3, warmup=0, steps=steps),
        eval_splits=(),
        log_every=1,
    )
    return dataclasses.replace(base, **changes)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """Two steps from a random start, with another head than the model's own."""
    out = tmp_path_factory.mktemp("runs") / "first"
    loop.finetune(config(out, model="micro", weights=None, head="tokens", seed=3))
    return out


@pytest.fixture(scope="module")
def adapted(tmp_path_factory, first):
    """One step of adapters on the first run's end."""
    out = tmp_path_factory.mktemp("runs") / "adapted"
    rank = LoraConfig(rank=2, targets=("bridge/",))
    loop.finetune(config(out, 1, weights=str(first), lora=rank))
    return out


def leaves(params) -> dict[str, np.ndarray]:
    """Without those that stand for a leaf that is not anchored."""
    return {name: np.asarray(leaf) for name, leaf in flatten_dict(params, sep="/").items() if hasattr(leaf, "shape")}


def started(monkeypatch, config: FinetuneConfig):
    """(the parameters that a run starts from, its theta0), without a step."""
    found = {}

    def stop(run, out, begun):
        hold = begun.state.opt_state[3]
        found.update(start=leaves(lora.base(begun.state.model)), theta0=leaves(begun.theta0))
        found["anchors"] = leaves(hold.anchor) if hasattr(hold, "anchor") else {}
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop.session, "go", stop)
        loop.finetune(config)
    return found


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_it_starts_from_the_end_of_the_run_to_the_bit_and_is_held_there(first, tmp_path, monkeypatch, capsys):
    found = started(monkeypatch, config(tmp_path / "second", weights=str(first)))
    end = leaves(load_run(first).params)
    assert_same(found["start"], end)
    assert_same(found["theta0"], end)
    anchors = found["anchors"]
    assert "bridge/fc1/kernel" in anchors
    assert_same(anchors, {name: end[name] for name in anchors})
    assert f"starts from {first} at step 2; drift is measured there\n" in capsys.readouterr().out
    recorded = read_config(tmp_path / "second")
    assert (recorded.model, recorded.head) == ("micro", "tokens")  # as the run's; no option said it
    assert recorded.weights == str(first / "checkpoints" / "2")
    assert json.loads((tmp_path / "second" / run_directory.START).read_text()) == {
        "run": str(first),
        "step": 2,
        "adapters_merged": False,
        "anew": [],
        "resampled": [],
        "original_weights": None,
        "anchor_weights": "start",
    }


@pytest.mark.parametrize("method", ["maps", "l2_sp", "adam"])
def test_the_original_weights_are_those_that_the_first_run_started_from(first, tmp_path, monkeypatch, method):
    maps = MapsConfig(method=method)
    original = started(monkeypatch, config(tmp_path / "a", model="micro", weights=None, head="tokens", seed=3))["start"]
    between = tmp_path / "between"
    loop.finetune(config(between, 1, weights=str(first)))
    second = config(tmp_path / "second", weights=str(between), anchor_weights="original", maps=maps, seed=8)
    found = started(monkeypatch, second)
    assert_same(found["start"], leaves(load_run(between).params))
    assert_same(found["theta0"], original)
    kernel = found["anchors"].get("bridge/fc1/kernel")
    if method == "maps":
        np.testing.assert_array_equal(kernel, original["bridge/fc1/kernel"])
        assert np.abs(kernel - found["start"]["bridge/fc1/kernel"]).max() > 1e-4


def test_with_original_weights_it_resumes_bit_for_bit_and_its_drift_is_from_there(first, tmp_path, monkeypatch):
    original = started(monkeypatch, config(tmp_path / "a", model="micro", weights=None, head="tokens", seed=3))["start"]
    second = config(tmp_path / "second", 3, weights=str(first), anchor_weights="original", save_every=2)
    loop.finetune(second)
    end = leaves(load_run(tmp_path / "second").params)
    rows = {row["name"]: row["drift"] for row in json.loads((tmp_path / "second/drift.json").read_text())["tensors"]}
    logged = [json.loads(line) for line in (tmp_path / "second/metrics.jsonl").read_text().splitlines()]
    assert [line["mismatch"] for line in logged] == [0.0, 0.0, 0.0]
    shutil.rmtree(tmp_path / "second/checkpoints/3")
    assert loop.finetune(second).step == 3
    assert_same(leaves(load_run(tmp_path / "second").params), end)
    from_original, from_first = (
        np.linalg.norm(end["bridge/fc1/kernel"] - there["bridge/fc1/kernel"])
        for there in (original, leaves(load_run(first).params))
    )
    assert rows["bridge/fc1/kernel"] == pytest.approx(from_original, rel=1e-5)
    assert from_original != pytest.approx(from_first, rel=1e-2)


def test_adapters_are_merged(adapted, tmp_path, monkeypatch, capsys):
    found = started(monkeypatch, config(tmp_path / "second", weights=str(adapted)))
    trained = load_run(adapted)
    assert_same(found["start"], leaves(lora.merge_lora(trained.params, trained.config.lora)))
    assert f"starts from {adapted} at step 1, its adapters merged" in capsys.readouterr().out


def test_what_other_data_shape_otherwise_starts_anew_and_is_told(first, tmp_path, monkeypatch, capsys):
    second = config(tmp_path / "second", weights=str(first), data=DataConfig(batch_size=4, chunk=4))
    found, end = started(monkeypatch, second), leaves(load_run(first).params)
    anew = {name.split("/")[0] for name, leaf in found["start"].items() if not np.array_equal(leaf, end.get(name))}
    said = capsys.readouterr().out
    assert anew and anew <= {"readout", "action_head"}
    for module in anew:
        assert f"{module} starts anew: it has other shapes in {first}" in said


@pytest.mark.parametrize("antialiased", [True, False])
def test_positions_are_resampled_for_another_image_size(first, tmp_path, monkeypatch, capsys, antialiased):
    if not antialiased:  # as of a run that goes back to DINOv2's own names, say
        monkeypatch.setattr(start, "_antialias", lambda run, module: False)
    second = config(tmp_path / "second", weights=str(first), data=DataConfig(batch_size=4, image_size=32))
    found, end = started(monkeypatch, second), leaves(load_run(first).params)
    assert "siglip: positions of 4 x 4 patches, resampled to 2 x 2\n" in capsys.readouterr().out
    table, wanted = found["start"].pop("siglip/pos_embed"), end.pop("siglip/pos_embed")
    if antialiased:
        weights = np.asarray(jax.image.resize(np.eye(4), (2, 4), "cubic", antialias=True))
    else:  # Keys' kernel with a = -0.75 halfway between the two in the middle
        taps = np.array([-0.09375, 0.59375, 0.59375, -0.09375])
        weights = np.array([[taps[0] + taps[1], taps[2], taps[3], 0], [0, taps[0], taps[1], taps[2] + taps[3]]])
    grid = wanted.reshape(4, 4, -1)
    np.testing.assert_allclose(table, np.einsum("ai,bj,ijw->abw", weights, weights, grid).reshape(4, -1), atol=1e-6)
    assert_same(found["start"], end)
    np.testing.assert_array_equal(found["anchors"]["siglip/pos_embed"], table)


def test_a_run_that_goes_on_with_another_image_size_ends_and_can_be_queried(first, tmp_path):
    second = config(tmp_path / "second", weights=str(first), data=DataConfig(batch_size=4, image_size=32))
    assert loop.finetune(second).step == 2
    assert load_run(tmp_path / "second").params["siglip"]["pos_embed"].shape[0] == 4
    recorded = json.loads((tmp_path / "second" / run_directory.START).read_text())
    assert recorded["resampled"] == ["siglip: positions of 4 x 4 patches, resampled to 2 x 2"]


def test_weights_that_are_gone_leave_open_how_positions_are_resampled(first, tmp_path):
    run = shutil.copytree(first, tmp_path / "first")
    record = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**record, "weights": str(tmp_path / "gone")}))
    second = config(tmp_path / "second", weights=str(run), data=DataConfig(batch_size=4, image_size=32))
    with pytest.raises(FileNotFoundError, match="goes back to the weights .*/gone, which are not there, and how"):
        loop.finetune(second)


def test_a_checkpoint_may_be_named_and_a_name_of_shipped_weights_is_theirs(first, tmp_path, monkeypatch):
    second = config(tmp_path / "second", weights=f"{first}/checkpoints/2")
    assert_same(started(monkeypatch, second)["start"], leaves(load_run(first).params))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(first, tmp_path / "tiny")
    kinds = run_directory.kind("tiny"), run_directory.kind("./tiny"), run_directory.kind("second")
    assert kinds == ("shipped", "run", "run")


def unfinished(run: Path) -> str:
    shutil.rmtree(run / "checkpoints/2")
    return f"{run} is not finished: it is at step 0 of 2"


def torn(run: Path) -> str:
    (run / "checkpoints/2/default/_METADATA").unlink()
    return "checkpoints/2 is torn: default/_METADATA is missing; resume"


def damaged(run: Path) -> str:
    (run / "config.json").write_text("{")
    return "config.json is not JSON"


@pytest.mark.parametrize("harm", [unfinished, torn, damaged])
def test_runs_that_are_not_whole_are_refused_in_one_line(first, tmp_path, capsys, harm):
    run = shutil.copytree(first, tmp_path / "first")
    message = harm(run)
    assert commands.main(["finetune", "--out", str(tmp_path / "x"), "--weights", str(run), "--eval-splits"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "tiny"], "are of a model with siglip.patch=16, this one has 8; leave out --model."),
        (["--data.image-size", "128", "--anchor-weights", "original"], "a random start at images of 64 pixels"),
        (["--anchor-weights", "original", "--lora.rank", "2"], "adapters are held near the frozen weights"),
    ],
)
def test_what_does_not_fit_the_run_is_refused_in_one_line(first, tmp_path, capsys, options, message):
    command = ["finetune", "--out", str(tmp_path / "x"), "--weights", str(first), "--eval-splits", *options]
    assert commands.main(command) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "x").exists()


def test_original_weights_are_for_runs(tmp_path, capsys):
    assert commands.main(["finetune", "--out", str(tmp_path / "x"), "--anchor-weights", "original"]) == 2
    assert "anchor_weights is original, but tiny is no run; leave --anchor-weights out." in capsys.readouterr().err


def test_a_run_that_was_replaced_by_one_it_led_to_is_refused(first, tmp_path):
    run = shutil.copytree(first, tmp_path / "first")
    record = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**record, "weights": str(run)}))
    with pytest.raises(ValueError, match="has itself among the runs that led to it"):
        loop.finetune(config(tmp_path / "x", weights=str(run), anchor_weights="original"))


def test_a_longer_first_run_does_not_change_the_start_of_the_second(first, tmp_path):
    run = shutil.copytree(first, tmp_path / "first")
    loop.finetune(config(tmp_path / "second", 1, weights=str(run)))
    loop.finetune(config(run, 3, model="micro", weights=None, head="tokens", seed=3, keep=1))
    with pytest.raises(FileNotFoundError, match="there is no checkpoint .*/first/checkpoints/2; .* has .3.*"):
        loop.finetune(config(tmp_path / "second", 2, weights=str(run)))


def test_inspect_knows_the_model_of_a_run(first, capsys):
    assert commands.main(["inspect", "--weights", str(first)]) == 0
    out = capsys.readouterr().out
    assert "siglip" in out and "dinov2" not in out
    assert jax.tree.leaves(load_run(first).params)
