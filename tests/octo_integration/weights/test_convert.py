"""Tensors that repeat others, hold no finite floats, or have other names; there and back."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file

from octo_integration.model.config import Build, T5Config
from octo_integration.model.t5 import T5
from octo_integration.model.vit import Tower
from octo_integration.weights import convert
from octo_integration.weights.hf import open_checkpoint
from octo_integration.weights.imported import export_weights, import_weights, restore
from tests.octo_integration.weights.test_imported import CONFIG, FIXTURES, changed, shapes
from tests.octo_integration.weights.test_parity import DECODERS, TOWERS

HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"


def with_head(tmp_path, head):
    return changed(tmp_path, lambda tensors: tensors.update({HEAD: head(tensors[EMBEDDING])}), "qwen2")


def test_a_head_that_repeats_the_embedding_is_tied_and_exported(tmp_path):
    folder = with_head(tmp_path, lambda embedding: embedding.copy())
    record = import_weights("small", CONFIG, shapes(), {"language": folder}, tmp_path / "out")
    assert record["modules"]["language"]["copies"] == {HEAD: EMBEDDING} and not record["modules"]["language"]["ignored"]
    params = restore(tmp_path / "out", shapes())
    params["language"]["embed"]["embedding"] += 1.0
    (file,) = export_weights(params, record, tmp_path / "exported")
    before, after = load_file(folder / "model.safetensors"), load_file(file)
    assert before.keys() == after.keys()
    for name in (HEAD, EMBEDDING):
        np.testing.assert_array_equal(after[name], before[EMBEDDING] + 1.0)


def other_by_one(embedding):
    head = embedding.copy()
    head[-1, -1] += 1.0
    return head


@pytest.mark.parametrize("head", [other_by_one, lambda embedding: embedding[:-1].copy()])
def test_a_head_of_its_own_is_refused_by_a_model_that_ties_it(tmp_path, head):
    folder = with_head(tmp_path, head)
    with pytest.raises(ValueError, match=f"{HEAD} differs from {EMBEDDING}, but language of the model has one leaf"):
        import_weights("small", CONFIG, shapes(), {"language": folder}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_head_of_its_own_is_kept_by_a_model_that_has_one(tmp_path):
    config = dataclasses.replace(CONFIG, language=DECODERS["llama"])
    record = import_weights("small", config, shapes(config), {"language": FIXTURES / "llama"}, tmp_path / "out")
    (file,) = export_weights(restore(tmp_path / "out", shapes(config)), record, tmp_path / "exported")
    before, after = load_file(FIXTURES / "llama" / "model.safetensors"), load_file(file)
    assert before.keys() == after.keys() and (before[HEAD] != before[EMBEDDING]).any()
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)


def test_the_comparison_of_heads_goes_to_the_last_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(convert, "COMPARED", 7 * 32)
    with pytest.raises(ValueError, match="differs from"):
        folder = with_head(tmp_path, other_by_one)
        import_weights("small", CONFIG, shapes(), {"language": folder}, tmp_path / "out")


def quantise(tensors):
    for name in ("self_attn.q_proj", "mlp.down_proj"):
        tensors[f"model.layers.1.{name}.weight"] = tensors[f"model.layers.1.{name}.weight"].astype(np.int8)


def poison(tensors):
    tensors["model.layers.1.input_layernorm.weight"][3] = np.nan


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            quantise,
            r"no floats \(quantised\?\): model.layers.1.self_attn.q_proj.weight I8, .*mlp.down_proj.weight I8\.",
        ),
        (poison, r"model.safetensors: model.layers.1.input_layernorm.weight has NaN or infinite values"),
    ],
)
def test_values_that_are_no_finite_floats_are_refused(tmp_path, change, words):
    folder = changed(tmp_path, change, "qwen2")
    with pytest.raises(ValueError, match=words):
        import_weights("small", CONFIG, shapes(), {"language": folder}, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("prefix", ["", "language_model."])
def test_a_text_tower_without_its_prefix_there_and_back(tmp_path, prefix):
    def rename(tensors):
        for name in list(tensors):
            tensors[prefix + name.removeprefix("model.")] = tensors.pop(name)

    folder = changed(tmp_path, rename, "qwen2")
    record = import_weights("small", CONFIG, shapes(), {"language": folder}, tmp_path / "out")
    wanted = import_weights("small", CONFIG, shapes(), {"language": FIXTURES / "qwen2"}, tmp_path / "wanted")
    assert record["fingerprints"] == wanted["fingerprints"]
    (file,) = export_weights(restore(tmp_path / "out", shapes()), record, tmp_path / "exported")
    assert load_file(file).keys() == load_file(folder / "model.safetensors").keys()


def test_another_computation_is_refused_before_a_tensor_is_read(tmp_path):
    folder = changed(tmp_path, poison, "qwen2")
    config = json.loads((FIXTURES / "qwen2" / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    with pytest.raises(
        ValueError, match=r"qwen2/config.json does not fit language .*: rms_norm_eps is 0.5 \(the model"
    ):
        import_weights("small", CONFIG, shapes(), {"language": folder}, tmp_path / "out")


@functools.cache
def t5_shapes():
    init = T5(T5Config(vocabulary=40, width=32, depth=2, heads=2, mlp=48), Build()).init
    return jax.eval_shape(init, jax.random.key(0), np.zeros((1, 4), np.int32), np.ones((1, 4), bool))


def leaves(module, folder, module_shapes):
    """The format that is found, and what is read."""
    flat = {"/".join(path): leaf.shape for path, leaf in flatten_dict(module_shapes["params"]).items()}
    checkpoint = open_checkpoint(folder)
    found = convert.plan(module, flat, checkpoint)
    return found.format.name, convert.load(found, checkpoint)


def encoder_alone(tensors):
    tensors["embed_tokens.weight"] = tensors.pop("shared.weight")
    for name in list(tensors):
        tensors[name.removeprefix("encoder.")] = tensors.pop(name)


def repeat(tensors):
    tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"].copy()


def assert_same(got, wanted):
    assert got.keys() == wanted.keys()
    for name, leaf in wanted.items():
        np.testing.assert_array_equal(got[name], leaf, err_msg=name)


def test_t5_under_each_of_its_names(tmp_path):
    name, wanted = leaves("t5", FIXTURES / "t5", t5_shapes())
    assert name == "transformers, shared"
    for change, named in ((repeat, "transformers"), (encoder_alone, "transformers, encoder alone")):
        (tmp_path / change.__name__).mkdir()
        name, got = leaves("t5", changed(tmp_path / change.__name__, change, "t5"), t5_shapes())
        assert name == named
        assert_same(got, wanted)


def test_a_shared_embedding_that_differs_is_refused(tmp_path):
    def change(tensors):
        repeat(tensors)
        tensors["shared.weight"][0, 0] += 1.0

    with pytest.raises(ValueError, match="shared.weight differs from encoder.embed_tokens.weight"):
        leaves("t5", changed(tmp_path, change, "t5"), t5_shapes())


# Of transformers 4 -> 5, and of timm -> Prismatic.
RENAMED = {
    "dinov2": {"attention.attention.": "attention.", "output.dense": "o_proj"}
    | {f"attention.{name}.": f"attention.{name[0]}_proj." for name in ("query", "key", "value")},
    "timm_dinov2": {"gamma": "scale_factor"},
}


@pytest.mark.parametrize("registers", ["", "_plain"])
@pytest.mark.parametrize("named", RENAMED)
def test_positions_are_resampled_alike_under_the_other_names_of_a_family(tmp_path, named, registers):
    def rename(tensors):
        for name in list(tensors):
            new = functools.reduce(lambda text, pair: text.replace(*pair), RENAMED[named].items(), name)
            tensors[new] = tensors.pop(name)

    init = Tower(TOWERS[f"dinov2{registers}"], Build()).init
    at_12 = jax.eval_shape(init, jax.random.key(0), np.zeros((1, 12, 12, 3), np.float32))
    before, wanted = leaves("dinov2", FIXTURES / f"{named}{registers}", at_12)
    after, got = leaves("dinov2", changed(tmp_path, rename, f"{named}{registers}"), at_12)
    assert before != after
    assert_same(got, wanted)
