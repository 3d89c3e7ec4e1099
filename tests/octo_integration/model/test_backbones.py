"""Towers, T5, stem and decoder in all their forms; sizes against the published parameter trees."""

import dataclasses
import functools
import json
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from octo_integration.model import sizes, t5, vit
from octo_integration.model.config import Build, LoraConfig, StemConfig, T5Config
from octo_integration.model.language import Decoder
from octo_integration.model.stem import Stem
from octo_integration.model.vla import VLA
from tests.octo_integration.model.small import SMALL, inputs, params

TREES = Path(__file__).parents[4] / "shared/reference/param_trees"
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
CLIP = dataclasses.replace(SMALL.siglip, gelu="quick", pre_norm=True, cls_token=True, features="penultimate", depth=3)


def loss(config, values):
    out = VLA(config).apply({"params": values}, *inputs(config))
    return jnp.sum(jnp.sin(out))


def unstack(params):
    """Parameters of a model with `scan` as those of the same model without: blocks/w [D, ...] -> blocks_0/w, ..."""
    flat = {}
    for path, leaf in flatten_dict(params).items():
        if "blocks" not in path:
            flat[path] = leaf
            continue
        at = path.index("blocks")
        for i, row in enumerate(leaf):
            flat[(*path[:at], f"blocks_{i}", *path[at + 1 :])] = row
    return unflatten_dict(flat)


@functools.cache
def reference():
    return jax.jit(jax.value_and_grad(functools.partial(loss, SMALL)))(params())


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_remat_changes_no_gradient(remat):
    value, grads = jax.jit(jax.value_and_grad(functools.partial(loss, dataclasses.replace(SMALL, remat=remat))))(
        params()
    )
    np.testing.assert_allclose(value, reference()[0], rtol=1e-5)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), grads, reference()[1])


def test_unrolled_blocks_compute_the_same():
    config = dataclasses.replace(SMALL, scan=False)
    values = unstack(params())
    shapes = jax.eval_shape(VLA(config).init, jax.random.key(0), *inputs(config))["params"]
    assert jax.tree.map(jnp.shape, values) == jax.tree.map(lambda x: x.shape, shapes)
    np.testing.assert_allclose(jax.jit(functools.partial(loss, config))(values), reference()[0], rtol=1e-5)


@pytest.mark.parametrize("scan", [True, False])
def test_penultimate_features_are_those_of_a_shallower_tower(scan):
    deep, build = dataclasses.replace(SMALL.dinov2, depth=3, features="penultimate"), Build(scan=scan)
    values = vit.Tower(deep, build).init(jax.random.key(0), IMAGES)["params"]
    assert {"norm", "blocks" if scan else "blocks_2"} <= values.keys()
    got = vit.Tower(deep, build).apply({"params": values}, IMAGES)
    # The same without the last block and with a norm that is undone: its scale and bias are the features' own.
    names = ("blocks",) if scan else ("blocks_0", "blocks_1")
    kept = {name: jax.tree.map(lambda x: x[:2], values[name]) if scan else values[name] for name in names}
    shallow = {**{k: v for k, v in values.items() if not k.startswith("blocks")}, **kept}
    normed = vit.Tower(dataclasses.replace(SMALL.dinov2, depth=2), build).apply({"params": shallow}, IMAGES)
    centred = got - got.mean(-1, keepdims=True)
    np.testing.assert_allclose(centred / np.sqrt(got.var(-1, keepdims=True) + 1e-6), normed, atol=1e-5)


def test_the_unread_block_and_norm_have_no_gradient():
    tower = vit.Tower(CLIP, Build())
    values = tower.init(jax.random.key(0), IMAGES)["params"]
    grads = jax.grad(lambda p: jnp.sum(jnp.square(tower.apply({"params": p}, IMAGES))))(values)
    assert "bias" not in values["patch_embed"]
    for path, leaf in flatten_dict(grads, sep="/").items():
        if path.startswith("blocks/"):
            rows = np.abs(leaf).reshape(3, -1).max(1)
            assert rows[2] == 0, path
            assert (rows[:2] > 0).all() or path.endswith("key/bias"), path  # which softmax cancels
        else:
            assert path.startswith("norm/") == (np.abs(leaf).max() == 0), path


def test_t5_buckets_are_exact_nearby_and_logarithmic_further_out():
    distance = np.array([0, -1, -7, -8, -11, -12, -127, -500, 1, 7, 8, 500])
    wanted = [0, 1, 7, 8, 8, 9, 15, 15, 17, 23, 24, 31]
    assert t5.buckets(distance, 32, 128).tolist() == wanted


def test_t5_ignores_padding_and_needs_no_position():
    config = T5Config(vocabulary=20, width=16, depth=2, heads=2, mlp=24)
    model, tokens, mask = t5.T5(config, Build()), jnp.array([[3, 4, 5, 6]]), jnp.array([[True, True, True, False]])
    values = model.init(jax.random.key(0), tokens, mask)["params"]
    out = model.apply({"params": values}, tokens, mask)
    assert out.shape == (1, 4, 16)
    other = model.apply({"params": values}, tokens.at[0, 3].set(9), mask)
    np.testing.assert_array_equal(out[:, :3], other[:, :3])
    swapped = model.apply({"params": values}, tokens[:, jnp.array([1, 0, 2, 3])], mask)
    assert np.abs(swapped[:, 0] - out[:, 1]).max() > 1e-4  # its order counts through the bias


def test_a_stem_makes_a_vector_per_patch_from_its_neighbourhood():
    stem = Stem(StemConfig(channels=(8, 12), width=6), Build())
    values = stem.init(jax.random.key(0), IMAGES)["params"]
    out = stem.apply({"params": values}, IMAGES)
    assert out.shape == (2, 16, 6)
    other = IMAGES.copy()
    other[:, 0, 0] = 255 - other[:, 0, 0]
    changed = np.abs(stem.apply({"params": values}, other) - out).max((0, 2))
    assert changed[0] > 1e-3
    kernel = values["conv_0"]["kernel"]
    shifted = {**values, "conv_0": {**values["conv_0"], "kernel": 3 * kernel + 1}}  # standardised away
    np.testing.assert_allclose(stem.apply({"params": shifted}, IMAGES), out, atol=1e-3)


def test_an_untied_head_is_part_of_the_weights():
    config = dataclasses.replace(SMALL.language, tied=False)
    decoder, x = Decoder(config, Build()), jnp.ones((1, 3, 32))
    values = decoder.init(jax.random.key(0), x, jnp.arange(3)[None], jnp.ones((1, 3, 3), bool))["params"]
    assert values["lm_head"]["kernel"].shape == (32, config.vocabulary)
    logits = decoder.apply({"params": values}, x, method="logits")
    np.testing.assert_allclose(logits, x @ values["lm_head"]["kernel"], rtol=1e-5)


LORA = dataclasses.replace(SMALL, lora=LoraConfig(rank=2, alpha=6.0, targets=(r"language/blocks/attn", r"bridge/fc1")))


@pytest.mark.parametrize("scan", [True, False])
def test_adapters_add_a_low_rank_product_to_the_kernels_they_are_asked_for(scan):
    config = dataclasses.replace(
        LORA, scan=scan, lora=dataclasses.replace(LORA.lora, targets=(r"language/blocks.*attn", r"bridge/fc1"))
    )
    flat = flatten_dict(jax.device_get(jax.jit(VLA(config).init)(jax.random.key(0), *inputs(config))["params"]))
    adapted = {path[:-1] for path in flat if path[-1] == "lora_a"}
    assert {path[0] for path in adapted} == {"language", "bridge"}
    assert len(adapted) == (4 if scan else 8) + 1
    assert all(not flat[(*path, "lora_b")].any() for path in adapted)
    rng = np.random.default_rng(0)
    for path in adapted:
        flat[(*path, "lora_b")] = 0.1 * rng.normal(size=flat[(*path, "lora_b")].shape).astype(np.float32)
    merged = {path: leaf for path, leaf in flat.items() if path[-1] not in ("lora_a", "lora_b")}
    for path in adapted:
        kernel = merged[(*path, "kernel")]
        merged[(*path, "kernel")] = kernel + 3.0 * (flat[(*path, "lora_a")] @ flat[(*path, "lora_b")]).reshape(
            kernel.shape
        )
    plain = dataclasses.replace(config, lora=LoraConfig())
    want = jax.jit(VLA(plain).apply)({"params": unflatten_dict(merged)}, *inputs(config))
    got = jax.jit(VLA(config).apply)({"params": unflatten_dict(flat)}, *inputs(config))
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("name", ["mini", "openvla"])
def test_full_models_run_at_reduced_depth(name):
    whole = sizes.CONFIGS[name]
    shallow = {part: dataclasses.replace(getattr(whole, part), depth=2) for part in ("dinov2", "siglip")}
    language = dataclasses.replace(whole.language, depth=1, width=256, heads=4, kv_heads=2, mlp=64, vocabulary=300)
    config = dataclasses.replace(whole, **shallow, language=language, image_size=28)
    values = jax.jit(VLA(config).init)(jax.random.key(0), *inputs(config))["params"]
    actions = jax.jit(VLA(config).apply)({"params": values}, *inputs(config))
    assert actions.shape == (2, 8, 7) and np.isfinite(actions).all()


def published(name, without=r"$^"):
    rows = json.loads((TREES / f"{name}.json").read_text())
    return sum(math.prod(row["shape"]) for row in rows if not re.search(without, row["path"]))


def count(module, *arguments):
    return sum(x.size for x in jax.tree.leaves(jax.eval_shape(module.init, jax.random.key(0), *arguments)))


def decoder_size(config):
    def everything(module, tokens):
        return module.logits(module(module.words(tokens), tokens, jnp.ones((1, 2, 2), bool)))

    init = functools.partial(Decoder(config, Build()).init, jax.random.key(0), method=everything)
    return sum(x.size for x in jax.tree.leaves(jax.eval_shape(init, jnp.zeros((1, 2), int))))


@pytest.mark.skipif(not TREES.is_dir(), reason=f"no {TREES}")
def test_full_sizes_have_the_published_number_of_parameters():
    image = jnp.zeros((1, 224, 224, 3))
    words = (jnp.zeros((1, 2), int), jnp.ones((1, 2), bool))
    # DINOv2's positions are resampled from 37 x 37 patches and a class token to 16 x 16, which the class token keeps.
    resampled = (1 + 37 * 37 - 16 * 16) * 1024
    assert (
        count(vit.Tower(sizes.DINOV2_L, Build()), image) == published("hf_dinov2_vitl14_reg4", "mask_token") - resampled
    )
    pooling = r"vision_model\.head\."
    assert count(vit.Tower(sizes.SIGLIP_SO400M, Build()), image) == published("hf_siglip_so400m14_224_vision", pooling)
    assert count(vit.Tower(sizes.CLIP_L, Build()), image) == published("hf_clip_vitl14_vision_tf5") - 1024
    assert decoder_size(sizes.QWEN2_5_0_5B) == published("hf_qwen2_5_0_5b", "lm_head")  # tied
    assert decoder_size(sizes.LLAMA2_7B) == published("hf_llama2_7b")
    assert count(t5.T5(sizes.T5_BASE, Build()), *words) == published("hf_t5_base_encoder", r"^shared")  # listed twice
