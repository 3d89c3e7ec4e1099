"""`maps-vla merge`: one model without adapters that computes what the run does."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from octo_integration.cli import commands
from octo_integration.cli import merge as merge_command
from octo_integration.common.files import write_json
from octo_integration.config import FinetuneConfig, to_dict
from octo_integration.data import DataConfig
from octo_integration.model.config import LoraConfig
from octo_integration.model.sizes import CONFIGS
from octo_integration.policy.trained import load_run
from octo_integration.state import checkpoint, lora
from octo_integration.train.assemble import assemble
from octo_integration.train.run_directory import describe_run
from octo_integration.weights.store import load_params
from tests.octo_integration import micro_vla

LORA = LoraConfig(rank=2, alpha=4.0, targets=("language/blocks/attn", "bridge/"))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The directory of a run whose adapters have moved, without the training that moves them."""
    monkeypatch.setitem(CONFIGS, "micro", dataclasses.replace(micro_vla.CONFIG, dinov2=None))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    out = tmp_path / "run"
    out.mkdir()
    config = FinetuneConfig(
        str(out), model="micro", weights=None, data=DataConfig(batch_size=4), lora=LORA, eval_splits=()
    )
    job, rng = assemble(config), np.random.default_rng(0)

    def moved(path, leaf):
        return leaf + 0.1 * rng.normal(size=leaf.shape).astype(leaf.dtype) if path[-1].key == "lora_b" else leaf

    state = job.init(jax.tree_util.tree_map_with_path(moved, job.theta0()))
    manager = checkpoint.open_checkpoints(out / "checkpoints", keep=1)
    checkpoint.save(manager, 1, state, anchored=job.hold.anchored)
    checkpoint.finish(manager)
    describe_run(out, config, job.built.statistics)
    return out


def test_the_merged_model_computes_the_same(run, tmp_path, capsys):
    out = tmp_path / "merged.safetensors"
    assert commands.main(["merge", "--run", str(run), "--out", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    trained = load_run(run)
    plain = dataclasses.replace(trained.built.model.config, lora=LoraConfig())
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), lora.base(trained.params))
    merged = load_params(out, like)
    assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {np.dtype("float32")}
    rng = np.random.default_rng(0)
    size = plain.image_size
    observation = {
        "image_primary": rng.integers(0, 256, (2, 1, size, size, 3), dtype=np.uint8),
        "proprio": rng.normal(size=(2, 1, plain.proprio_dim)).astype(np.float32),
        "timestep_pad_mask": np.ones((2, 1), bool),
    }
    length = plain.instruction_length
    task = {"tokens": rng.integers(0, 9, (2, length), dtype=np.int32), "mask": np.ones((2, length), bool)}
    model = trained.built.model
    adapted = model.apply({"params": trained.params}, observation, task)
    alone = model.clone(config=plain).apply({"params": merged}, observation, task)
    np.testing.assert_allclose(alone, adapted, atol=1e-5)
    without = model.clone(config=plain).apply({"params": lora.base(trained.params)}, observation, task)
    assert np.abs(without - adapted).max() > 1e-3


def test_a_run_without_adapters_has_nothing_to_merge(tmp_path, monkeypatch, capsys):
    write_json(tmp_path / "config.json", to_dict(FinetuneConfig(str(tmp_path))))
    monkeypatch.setattr(merge_command, "load_run", lambda *_: pytest.fail("the run was loaded"))
    arguments = ["merge", "--run", str(tmp_path), "--out", str(tmp_path / "x.safetensors")]
    assert commands.main(arguments) == commands.BAD_INPUT
    assert "was trained without adapters" in capsys.readouterr().err
