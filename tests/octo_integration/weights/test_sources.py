"""A model from the config.json of its sources, and what cannot be computed."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file

from octo_integration.common import memory
from octo_integration.model.config import Build
from octo_integration.model.named import shapes_of
from octo_integration.model.sizes import CLIP_L, DINOV2_L, SIGLIP_SO400M
from octo_integration.model.vit import Tower
from octo_integration.weights.hf import Checkpoint, open_checkpoint
from octo_integration.weights.imported import import_weights, restore
from octo_integration.weights.sources import model_from
from tests.octo_integration.weights.test_parity import DECODERS, HERE, PLAIN, TOWERS, agree

FIXTURES = HERE / "fixtures"
FAMILIES = {"dinov2": DINOV2_L, "dinov2_plain": DINOV2_L, "siglip": SIGLIP_SO400M, "clip": CLIP_L}


def opened(*names, **changes):
    """Fixtures as sources; `changes` are of the config.json of the first."""
    sources = {name.removesuffix("_plain"): open_checkpoint(FIXTURES / name) for name in names}
    first, *_ = sources
    config = {**sources[first].configs["config.json"], **changes}
    sources[first] = sources[first]._replace(configs={"config.json": config})
    return sources


def language(name, **changes):
    checkpoint = open_checkpoint(FIXTURES / name)
    config = {**checkpoint.configs["config.json"], **changes}
    return checkpoint._replace(configs={"config.json": config})


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("decoder", DECODERS)
def test_every_kind_of_tower_with_every_kind_of_language_model(name, decoder):
    module, family = name.removesuffix("_plain"), FAMILIES[name]
    model = model_from({**opened(name), "language": language(decoder)}, 16, None)
    assert model.language == DECODERS[decoder]
    told = {"mean": family.mean, "std": family.std, "layer_scale": family.layer_scale, "features": "penultimate"}
    assert model.towers == {module: dataclasses.replace(TOWERS[name], **told)}
    assert model.image_size == 16 and model.head.hidden == 32


def test_two_towers_the_size_of_the_images_and_some_of_the_blocks():
    sources = {**opened("dinov2", "siglip"), "language": language("llama")}
    model = model_from(sources, None, 1)
    assert list(model.towers) == ["dinov2", "siglip"] and model.image_size == 224
    assert (model.language.depth, model.language.of_depth) == (1, 2)
    with pytest.raises(ValueError, match="the first 3 of 2 language blocks"):
        model_from(sources, None, 3)
    with pytest.raises(ValueError, match="image_size 18 is no multiple of the patch size 4"):
        model_from(sources, 18, None)


def test_published_sizes_that_no_name_of_ours_has():
    """DINOv2-B without registers, SigLIP-B/16 whole, and a Llama whose config.json leaves out what its family says."""
    vision = {"model_type": "dinov2", "hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12}
    files = {"config.json": vision, "preprocessor_config.json": {"image_mean": [0.1, 0.2, 0.3]}}
    text = {"model_type": "llama", "hidden_size": 2048, "num_attention_heads": 32, "num_key_value_heads": 4}
    sources = {
        "dinov2": Checkpoint(Path("d"), {}, files),
        "language": Checkpoint(Path("l"), {"lm_head.weight": None}, {"config.json": {**text, "num_hidden_layers": 22}}),
    }
    model = model_from(sources, None, None)
    assert (model.dinov2.patch, model.dinov2.mlp, model.dinov2.registers) == (14, 3072, 0)
    assert model.dinov2.mean == (0.1, 0.2, 0.3) and model.dinov2.std == DINOV2_L.std
    assert (model.language.vocabulary, model.language.mlp, model.language.rope_theta) == (32_000, 11_008, 1e4)
    assert not model.language.tied and not model.language.qkv_bias
    whole = {"model_type": "siglip", "vision_config": {"hidden_size": 768}}
    towers = {"siglip": Checkpoint(Path("s"), {}, {"config.json": whole})}
    siglip = model_from({**towers, "language": sources["language"]}, None, None).siglip
    assert (siglip.patch, siglip.heads, siglip.gelu) == (16, 12, "tanh")


@pytest.mark.parametrize(
    ("module", "changes", "words"),
    [
        ("dinov2", {"hidden_act": "relu"}, "hidden_act is 'relu'; a tower computes with one of gelu, "),
        ("dinov2", {"num_hidden_layers": "three"}, "num_hidden_layers is 'three'; it must be a whole number above 0"),
        ("dinov2", {"num_attention_heads": 5}, "config.json: model: a tower's width 32 is not a multiple of heads 5"),
        ("dinov2", {"use_swiglu_ffn": True}, "use_swiglu_ffn is True .the model computes with False"),
        ("dinov2", {"model_type": "vit"}, "holds a model of type 'vit'"),
        ("dinov2", {"model_type": None}, "no config.json with a model_type .dinov2 or dinov2_with_registers."),
        ("language", {"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling is .* .the model computes with 'default'"),
        ("language", {"use_sliding_window": True}, "use_sliding_window is True"),
        ("language", {"head_dim": 16}, "head_dim is 16 .the model computes with 8"),
        ("language", {"hidden_act": "gelu"}, "hidden_act is 'gelu' .the model computes with 'silu'"),
        ("language", {"num_attention_heads": 3}, "config.json: model: language width 32 / heads 3"),
        ("language", {"tie_word_embeddings": False}, "tie_word_embeddings is not true, but no lm_head.weight is there"),
    ],
)
def test_what_cannot_be_computed_is_refused_by_field(tmp_path, module, changes, words):
    folders = {"dinov2": tmp_path / "dinov2", "language": tmp_path / "language"}
    shutil.copytree(FIXTURES / "dinov2", folders["dinov2"])
    shutil.copytree(FIXTURES / "qwen2", folders["language"])
    file = folders[module] / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(ValueError, match=words) as refusal:
        sources = {name: open_checkpoint(folder) for name, folder in folders.items()}
        if changes.get("model_type") == "vit":
            import_weights("x", None, {}, folders, tmp_path / "out")
        model = model_from(sources, 16, None)
        import_weights("x", model, shapes_of(model), folders, tmp_path / "out")
    assert "\n" not in str(refusal.value) and not (tmp_path / "out").exists()


def test_a_language_model_and_a_tower_are_needed():
    with pytest.raises(ValueError, match="made of --language and one or more of --dinov2"):
        model_from(opened("dinov2"), None, None)
    with pytest.raises(ValueError, match="there is no image tower"):
        model_from({"language": language("qwen2")}, None, None)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """DINOv2 and the first block of Llama, for images of another size than they were trained at."""
    folders = {"dinov2": FIXTURES / "dinov2", "language": FIXTURES / "llama"}
    model = model_from({name: open_checkpoint(folder) for name, folder in folders.items()}, 12, 1)
    model = dataclasses.replace(model, dinov2=dataclasses.replace(model.dinov2, features="last", **PLAIN))
    out = tmp_path_factory.mktemp("weights") / "mine"
    record = import_weights("mine", model, shapes_of(model), folders, out)
    return model, out, record


def test_positions_are_resampled_once_for_whatever_size_the_model_has(weights):
    model, out, _ = weights
    for size, file in ((12, "dinov2_resized"), (16, "dinov2_io")):
        params = restore(out, shapes_of(dataclasses.replace(model, image_size=size)))["dinov2"]
        io = load_file(FIXTURES / f"{file}.safetensors")
        seen = jax.jit(Tower(model.dinov2, Build()).apply)({"params": params}, io["pixels"].transpose(0, 2, 3, 1))
        agree(seen, io["last"])


def test_resampled_positions_go_where_the_model_says(weights):
    model, out, _ = weights
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("fsdp",))
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes_of(model))
    params = restore(out, like)
    assert all(leaf.sharding == where for leaf in jax.tree.leaves(params))
    assert params["dinov2"]["pos_embed"].shape == (9, 32)


def test_of_the_first_blocks_the_others_are_left_out_by_name(weights):
    model, out, record = weights
    left = record["modules"]["language"]["ignored"]
    assert {name.split(".")[2] for name in left} == {"1"}
    assert set(left.values()) == {"only the first 1 of 2 blocks are used"}
    flat = flatten_dict(restore(out, shapes_of(model))["language"], sep="/")
    tensors = load_file(FIXTURES / "llama" / "model.safetensors")
    kernel = flat["blocks/mlp/up/kernel"]
    assert kernel.shape == (1, 32, 48)
    np.testing.assert_array_equal(kernel[0], tensors["model.layers.0.mlp.up_proj.weight"].T)


def test_too_little_memory_is_said_before_a_tensor_is_read(tmp_path, monkeypatch, weights):
    model, _, _ = weights
    monkeypatch.setattr(memory, "free", lambda: 100_000)
    monkeypatch.setattr("octo_integration.weights.imported.load", lambda *_: pytest.fail("a tensor was read"))
    folders = {"dinov2": FIXTURES / "dinov2", "language": FIXTURES / "llama"}
    with pytest.raises(ValueError, match=r"the import of mine takes at least 0.0 GiB of memory, of which 0.0 are free"):
        import_weights("mine", model, shapes_of(model), folders, tmp_path / "out")
    assert not (tmp_path / "out").exists()
