"""`maps-vla export` of every kind of run, and back in again, bit for bit."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from octo_integration.cli.commands import main
from octo_integration.config import FinetuneConfig
from octo_integration.data import DataConfig
from octo_integration.model.config import LoraConfig
from octo_integration.model.sizes import CONFIGS
from octo_integration.policy.trained import load_run
from octo_integration.state import checkpoint, lora
from octo_integration.train import defaults
from octo_integration.train.assemble import assemble
from octo_integration.train.run_directory import describe_run
from tests.octo_integration import micro_vla

LORA = LoraConfig(rank=2, targets=("language/blocks/attn", "bridge/"))


@pytest.fixture(autouse=True)
def micro(tmp_path, monkeypatch):
    monkeypatch.setitem(CONFIGS, "micro", dataclasses.replace(micro_vla.CONFIG, dinov2=None))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def leaves(params) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf) for name, leaf in flatten_dict(params, sep="/").items()}


@pytest.mark.parametrize("adapters", [LoraConfig(), LORA])
def test_a_run_of_weights_without_names_is_one_file_that_comes_back_in_bit_for_bit(tmp_path, capsys, adapters):
    """Without training: the weights are at random, adapters too."""
    run, out = tmp_path / "run", tmp_path / "exported"
    run.mkdir()
    config = FinetuneConfig(
        str(run), model="micro", weights=None, head="tokens", data=DataConfig(batch_size=4), lora=adapters,
        eval_splits=(),
    )  # fmt: skip
    config = defaults.of_run(config, run)
    job, rng = assemble(config), np.random.default_rng(0)
    moved = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(x.dtype), job.theta0())
    manager = checkpoint.open_checkpoints(run / "checkpoints", keep=1)
    checkpoint.save(manager, 1, job.init(moved), anchored=job.hold.anchored)
    checkpoint.finish(manager)
    describe_run(run, config, job.built.statistics)

    assert main(["export", "--run", str(run), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"next: maps-vla finetune --out runs/exported --weights {out}/weights.safetensors" in said
    assert sorted(path.name for path in out.iterdir()) == ["weights.model.json", "weights.safetensors"]

    back = FinetuneConfig(str(tmp_path / "b"), weights=f"{out}/weights.safetensors", eval_splits=())
    back = defaults.of_run(back, tmp_path / "b")
    assert (back.model, back.head, back.data.image_size) == (None, None, 64)  # all of it is in weights.model.json
    start = leaves(assemble(dataclasses.replace(back, data=config.data)).theta0())
    trained = load_run(run)
    end = leaves(lora.merge_lora(trained.params, trained.config.lora))
    assert start.keys() == end.keys()
    for name, leaf in end.items():
        np.testing.assert_array_equal(start[name], leaf, err_msg=name)
        assert leaf.dtype == np.float32


def test_weights_that_are_gone_took_their_names_along(tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"out": str(run), "weights": str(tmp_path / "imported")}))
    assert main(["export", "--run", str(run), "--out", str(tmp_path / "x")]) == 2
    error = capsys.readouterr().err
    assert f"{run} goes back to weights {tmp_path}/imported, which are not there" in error and error.count("\n") == 1
