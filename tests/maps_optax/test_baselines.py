"""L2-SP and interpolation in weight space."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import maps_optax as mx


def test_l2_sp_is_the_gradient_of_its_penalty() -> None:
    rng = np.random.default_rng(0)
    theta0, theta, grads = (
        {"a": jnp.asarray(rng.normal(size=(3, 2)), jnp.float32), "b": jnp.asarray(rng.normal(size=4), jnp.float32)}
        for _ in range(3)
    )
    strength = {"a": np.array([0.1, 0.5, 2.0]), "b": None}

    def penalty(p: Any) -> Any:
        return 0.5 * jnp.sum(jnp.asarray(strength["a"], jnp.float32)[:, None] * (p["a"] - theta0["a"]) ** 2)

    tx = mx.l2_sp(strength)
    got, _ = tx.update(grads, tx.init(theta0), theta)
    expected = jax.tree_util.tree_map(jnp.add, grads, jax.grad(penalty)(theta))
    jax.tree_util.tree_map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), got, expected)


def test_l2_sp_pulls_sgd_home() -> None:
    tx = optax.chain(mx.l2_sp(1.0), optax.sgd(0.5))
    params = jnp.asarray([4.0])
    state = tx.init(jnp.zeros(1))
    for _ in range(20):
        updates, state = tx.update(jnp.zeros(1), state, params)
        params = optax.apply_updates(params, updates)
    assert abs(float(params[0])) < 1e-4


def test_l2_sp_keeps_the_gradients_dtype() -> None:
    theta = jnp.ones(3, jnp.bfloat16)
    tx = mx.l2_sp(1.0)
    assert tx.update(theta, tx.init(theta), theta)[0].dtype == jnp.bfloat16


def test_interpolate() -> None:
    zero, one = {"a": jnp.zeros((2, 3)), "b": jnp.zeros(2)}, {"a": jnp.ones((2, 3)), "b": jnp.ones(2)}
    for alpha in (0.0, 0.3, 1.0):
        assert float(mx.interpolate(zero, one, alpha)["a"][1, 2]) == pytest.approx(alpha)
    merged = mx.interpolate(zero, one, {"a": np.array([0.25, 0.75]), "b": None})
    np.testing.assert_allclose(merged["a"], [[0.25] * 3, [0.75] * 3])
    np.testing.assert_array_equal(merged["b"], one["b"])


def test_interpolate_in_bf16_is_computed_in_float32() -> None:
    a, b = (jnp.asarray(np.random.default_rng(i).normal(size=64), jnp.bfloat16) for i in (0, 1))
    got = mx.interpolate(a, b, 1 / 3)
    exact = (2 / 3) * np.asarray(a, np.float64) + (1 / 3) * np.asarray(b, np.float64)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(got, np.float64), exact, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize(
    "pretrained, alpha, message",
    [
        ({"w": jnp.ones(3)}, 0.5, r"leaf 'w' has shape \(3,\)"),
        ({"v": jnp.ones(2)}, 0.5, "no leaf 'w'"),
        ({"w": jnp.ones(2)}, {"w": np.ones(5)}, r"alpha of leaf 'w' has shape \(5,\)"),
        ({"w": jnp.ones(2)}, {}, "alpha has no leaf 'w'"),
    ],
)
def test_interpolate_refuses(pretrained: Any, alpha: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mx.interpolate(pretrained, {"w": jnp.ones(2)}, alpha)
