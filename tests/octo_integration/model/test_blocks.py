"""Scanned stacks are their blocks one after the other, and blocks are the published formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from octo_integration.model import language, vit
from octo_integration.model.attention import blockwise_mask
from octo_integration.model.bridge import Bridge
from octo_integration.model.config import Build
from octo_integration.model.vla import VLA
from tests.octo_integration.model.small import SMALL, inputs, params


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def layer_norm(x, p, eps=1e-6):
    scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
    return scaled * p["scale"] + p["bias"]


def rms_norm(x, p, eps=1e-6):
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + eps) * p["scale"]


def dense(x, p):
    return x @ p["kernel"] + p.get("bias", 0)


def gelu(x):
    return x * (1 + erf(x / np.sqrt(2))) / 2


def gelu_tanh(x):
    return x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2


def attention(x, p):
    q, k, v = (np.einsum("bnw,whd->bhnd", x, p[n]["kernel"]) + p[n]["bias"][:, None] for n in ("query", "key", "value"))
    scores = np.exp(q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1]))
    y = scores / scores.sum(-1, keepdims=True) @ v
    return np.einsum("bhnd,hdw->bnw", y, p["out"]["kernel"]) + p["out"]["bias"]


def slice_of(stack, i):
    return jax.tree.map(lambda p: np.asarray(p[i]), stack)


@pytest.mark.parametrize("name", ["dinov2", "siglip"])
def test_towers_are_the_formula_block_by_block(name):
    config = getattr(SMALL, name)
    p = jax.tree.map(np.asarray, params()[name])
    images = inputs()[0]["image_primary"][:, 0]
    act = {"exact": gelu, "tanh": gelu_tanh}[config.gelu]

    # A convolution of stride `patch`, written as sums over patches.
    scaled = (images / 255.0 - np.array(config.mean)) / np.array(config.std)
    x = np.stack(
        [
            np.einsum("bhwc,hwcd->bd", scaled[:, r : r + 8, c : c + 8], p["patch_embed"]["kernel"])
            for r in (0, 8)
            for c in (0, 8)
        ],
        axis=1,
    )
    x = x + p["patch_embed"]["bias"] + p["pos_embed"]
    before = [np.tile(p[n], (2, 1, 1)) for n in ("cls_token", "register_tokens") if n in p]
    x = np.concatenate([*before, x], axis=1)
    assert x.shape[1] == {"dinov2": 9, "siglip": 4}[name]
    for i in range(config.depth):
        b = slice_of(p["blocks"], i)
        x = x + b.get("ls1", 1.0) * attention(layer_norm(x, b["norm1"]), b["attn"])
        hidden = act(dense(layer_norm(x, b["norm2"]), b["mlp"]["fc1"]))
        x = x + b.get("ls2", 1.0) * dense(hidden, b["mlp"]["fc2"])
    wanted = layer_norm(x[:, -4:], p["norm"])
    got = jax.jit(vit.Tower(config, Build()).apply)({"params": params()[name]}, images)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_the_decoder_is_its_blocks_one_after_the_other():
    config, p = SMALL.language, params()["language"]
    x = jnp.asarray(random(2, 6, config.width))
    positions = jnp.tile(jnp.arange(6), (2, 1))
    mask = blockwise_mask(jnp.arange(6), jnp.ones((2, 6), bool))
    decoder = jax.jit(language.Decoder(config, Build()).apply)
    block = jax.jit(language.Block(config, Build()).apply)
    got = decoder({"params": p}, x, positions, mask)
    for i in range(config.depth):
        x, _ = block({"params": slice_of(p["blocks"], i)}, x, positions, mask)
    wanted = rms_norm(np.asarray(x), p["norm"])
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_a_decoder_block_is_the_formula():
    config, b = SMALL.language, slice_of(params()["language"]["blocks"], 1)
    x = random(2, 5, config.width)
    positions, mask = jnp.tile(jnp.arange(5), (2, 1)), jnp.ones((2, 5, 5), bool)
    attend = language.Attention(4, 2, True, False, config.rope_theta, Build())
    normed = jnp.asarray(rms_norm(x, b["norm1"]))
    middle = x + np.asarray(jax.jit(attend.apply)({"params": b["attn"]}, normed, positions, mask))
    y = rms_norm(middle, b["norm2"])
    gate, up = dense(y, b["mlp"]["gate"]), dense(y, b["mlp"]["up"])
    wanted = middle + dense(gate / (1 + np.exp(-gate)) * up, b["mlp"]["down"])
    block = jax.jit(language.Block(config, Build()).apply)
    got, _ = block({"params": b}, jnp.asarray(x), positions, mask)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_logits_come_through_the_embedding():
    x = random(2, 3, SMALL.language.width)
    logits = VLA(SMALL).apply({"params": params()}, x, method=lambda m, x: m.language.logits(x))
    table = np.asarray(params()["language"]["embed"]["embedding"])
    np.testing.assert_allclose(logits, x @ table.T, rtol=1e-4, atol=1e-4)
    assert logits.dtype == jnp.float32


def test_the_bridge_fuses_both_towers():
    p = jax.tree.map(np.asarray, params()["bridge"])
    a, b = random(2, 4, 16), random(2, 4, 24, seed=1)
    hidden = gelu(dense(np.concatenate([a, b], -1), p["fc1"]))
    wanted = dense(gelu(dense(hidden, p["fc2"])), p["fc3"])
    got = jax.jit(Bridge(32, Build()).apply)({"params": params()["bridge"]}, a, b)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_positions_start_as_sines_of_row_and_column():
    table = np.asarray(vit.sincos_positions(jax.random.key(0), (9, 8)))
    row, column = 2, 1
    angles = np.array([[place, place / 100] for place in (column, row)])
    wanted = [*np.sin(angles[0]), *np.cos(angles[0]), *np.sin(angles[1]), *np.cos(angles[1])]
    np.testing.assert_allclose(table[3 * row + column], wanted, atol=1e-6)
    assert len(np.unique(table.round(4), axis=0)) == 9
