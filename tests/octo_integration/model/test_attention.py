import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from octo_integration.model.attention import Attention, attend, blockwise_mask, even, rope
from octo_integration.model.config import Build


def test_times_may_differ_between_samples_and_a_time_per_token_is_causal():
    times = jnp.asarray([[0, 1, 2], [2, 1, 0]])
    mask = blockwise_mask(times, jnp.ones((2, 3), bool))
    np.testing.assert_array_equal(mask[0], np.tri(3, dtype=bool))
    np.testing.assert_array_equal(mask[1], np.tri(3, dtype=bool).T)


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_rope_products_hang_on_the_distance_only():
    q, k = random(1, 1, 2, 8), random(1, 1, 2, 8, seed=1)

    def product(m, n):
        at = [rope(x, jnp.asarray([[i]]), 10_000.0) for x, i in ((q, m), (k, n))]
        return np.asarray((at[0] * at[1]).sum(-1))

    np.testing.assert_allclose(product(3, 1), product(47, 45), rtol=1e-5)
    np.testing.assert_allclose(product(5, 5), np.asarray((q * k).sum(-1)), rtol=1e-5)
    assert np.abs(product(3, 1) - product(4, 1)).min() > 1e-3


def test_rope_turns_halves_by_the_published_angles():
    x = random(1, 3, 1, 4)
    position, theta = np.array([0, 1, 7]), 100.0
    angle = position[:, None] * theta ** (-np.array([0.0, 2.0]) / 4)
    a, b = np.asarray(x)[0, :, 0, :2], np.asarray(x)[0, :, 0, 2:]
    wanted = np.concatenate([a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)], axis=1)
    got = rope(x, jnp.asarray(position[None]), theta)[0, :, 0]
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_rope_keeps_the_dtype_and_computes_in_float32():
    x, position = random(1, 1, 1, 8).astype(jnp.bfloat16), jnp.asarray([[1000]])
    wanted = rope(x.astype(jnp.float32), position, 10_000.0)
    got = rope(x, position, 10_000.0)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got, wanted.astype(jnp.bfloat16))


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_grouped_attention_is_the_formula(kv_heads):
    heads, size, count, width = 4, 6, 5, 24
    module = Attention(heads, kv_heads, True, False, 50.0, Build())
    x, positions = random(2, count, width), jnp.tile(jnp.arange(count), (2, 1))
    mask = jnp.asarray(np.tri(count, dtype=bool))[None].repeat(2, 0)
    params = jax.jit(module.init)(jax.random.key(0), x, positions, mask)["params"]
    params = jax.tree.map(lambda p: np.asarray(p + 0.1 * random(*p.shape, seed=3)), params)

    def project(name):
        p = params[name]
        return rope_or_not(name, np.einsum("bnw,whd->bnhd", x, p["kernel"]) + p["bias"])

    def rope_or_not(name, y):
        return y if name == "value" else rope(jnp.asarray(y), positions, 50.0)

    q, k, v = (np.asarray(project(name)) for name in ("query", "key", "value"))
    assert k.shape == (2, count, kv_heads, size)
    out = np.zeros((2, count, heads, size))
    for h in range(heads):
        g = h // (heads // kv_heads)
        scores = np.einsum("bnd,bmd->bnm", q[:, :, h], k[:, :, g]) / np.sqrt(size)
        weights = np.exp(np.where(mask, scores, -np.inf))
        weights /= weights.sum(-1, keepdims=True)
        out[:, :, h] = np.einsum("bnm,bmd->bnd", weights, v[:, :, g])
    wanted = np.einsum("bnhd,hdw->bnw", out, np.asarray(params["out"]["kernel"]))
    got = jax.jit(module.apply)({"params": params}, x, positions, mask)
    np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=2e-5)


def test_biases_are_where_they_were_asked_for():
    x = random(1, 3, 8)
    for qkv, out in ((True, False), (False, True)):
        module = Attention(2, 2, qkv, out, None, Build())
        params = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
        found = {name: "bias" in p for name, p in params.items()}
        assert found == {"query": qkv, "key": qkv, "value": qkv, "out": out}


@pytest.mark.parametrize("length", [4, 5])
@pytest.mark.parametrize("masked", [False, True])
def test_an_added_token_changes_nothing(length, masked):
    """What cuDNN needs of odd lengths, computed without it."""
    q, k, v = (random(2, length, 2, 8, seed=i) for i in range(3))
    mask = jnp.tril(jnp.ones((2, 1, length, length), bool)) if masked else None
    bias = random(1, 2, length, length, seed=3)
    seen = []

    def spy(*arguments):
        seen.append(arguments[0].shape[1])
        return attend(*arguments, scale=None)

    def total(way, q):
        return jnp.sum(jnp.sin(way(q)))

    plain = functools.partial(total, lambda q: attend(q, k, v, mask, bias, scale=None))
    padded = functools.partial(total, lambda q: even(q, k, v, mask, bias, spy))
    np.testing.assert_allclose(jax.grad(padded)(q), jax.grad(plain)(q), atol=1e-5)
    assert set(seen) == {length + length % 2}
