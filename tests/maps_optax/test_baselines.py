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


ENDS: dict[str, Any] = {
    "int32": lambda i: jnp.asarray([16777217, -3 * i], jnp.int32),  # the first integer that float32 does not hold
    "uint8": lambda i: jnp.asarray([255 - i, i], jnp.uint8),
    "bool": lambda i: jnp.asarray([i == 0, i == 1]),
    "old key": jax.random.PRNGKey,
    "key": jax.random.key,
    "floats": lambda i: jnp.asarray([[-0.0, jnp.inf], [jnp.nan, 1e-45]][i], jnp.float32),
    "bfloat16": lambda i: jnp.asarray([[-0.0, jnp.inf], [jnp.nan, 3.0]][i], jnp.bfloat16),
    "complex64": lambda i: jnp.asarray([1j, 2.0 + i], jnp.complex64),
}


def bits(leaf: Any) -> Any:
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return str(leaf.dtype), np.asarray(jax.random.key_data(leaf) if is_key else leaf).tobytes()


@pytest.mark.parametrize("kind", ENDS)
@pytest.mark.parametrize("jitted", [False, True])
def test_the_ends_of_an_interpolation_are_exact(kind: str, jitted: bool) -> None:
    first, last = ({"w": ENDS[kind](i)} for i in (0, 1))
    interpolate = jax.jit(mx.interpolate) if jitted else mx.interpolate
    assert bits(interpolate(first, last, 0.0)["w"]) == bits(first["w"])
    assert bits(interpolate(first, last, 1.0)["w"]) == bits(last["w"])
    if kind not in ("floats", "bfloat16", "complex64"):  # the nearer end, where there is nothing in between
        assert bits(interpolate(first, last, 0.4)["w"]) == bits(first["w"])
        assert bits(interpolate(first, last, 0.5)["w"]) == bits(last["w"])


def test_rows_without_values_in_between_are_taken_each_from_its_end() -> None:
    first, last = jnp.asarray([[16777217, 1], [16777219, 2]]), jnp.asarray([[5, 6], [7, 8]])
    got = mx.interpolate({"ids": first}, {"ids": last}, {"ids": np.array([0.0, 1.0])})["ids"]
    assert got.tolist() == [[16777217, 1], [7, 8]]


@pytest.mark.parametrize("leaf", [2.0, 3])
def test_interpolate_wants_arrays(leaf: Any) -> None:
    with pytest.raises(ValueError, match="leaf 'w' is a .*, not an array; make it one with jnp.asarray"):
        mx.interpolate({"w": leaf}, {"w": leaf}, 0.5)
    assert mx.interpolate({"w": leaf}, {"w": leaf}, {"w": None}) == {"w": leaf}


def test_interpolate_refuses_two_kinds_of_leaves() -> None:
    with pytest.raises(ValueError, match="leaf 'w' has dtype float32 in pretrained and int32 in params"):
        mx.interpolate({"w": jnp.ones(2)}, {"w": jnp.ones(2, jnp.int32)}, 1.0)


W = {"w": jnp.ones((4, 3))}
ROW = {"w": jnp.ones((1, 3))}  # which would be broadcast
LORA = {"lora_a": jnp.ones((4, 2)), "lora_b": jnp.ones((2, 3))}


def stepped(tx: Any, updates: Any, params: Any = W, grad: Any = None, started: Any = None) -> Any:
    return tx.update(
        updates, tx.init(params if started is None else started), params, grad=params if grad is None else grad
    )


BROADCAST: dict[str, tuple[Any, str]] = {
    "spd updates": (lambda: stepped(mx.spd(1.0), ROW), "mx.spd: updates of leaf 'w'"),
    "spd grad": (lambda: stepped(mx.spd(1.0), W, grad=ROW), "mx.spd: grad of leaf 'w'"),
    "spd anchor": (lambda: mx.spd(1.0, anchor=ROW).init(W), "mx.spd: anchor of leaf 'w'"),
    "spd state": (lambda: stepped(mx.spd(1.0), W, started=ROW), "mx.spd: leaf 'w'"),
    "maps updates": (lambda: stepped(mx.maps(lambda p: {"w": 1}, 1.0), ROW), "mx.maps: updates of leaf 'w'"),
    "l2_sp updates": (lambda: stepped(mx.l2_sp(1.0), ROW), "mx.l2_sp: updates of leaf 'w'"),
    "l2_sp state": (lambda: stepped(mx.l2_sp(1.0), W, started=ROW), "mx.l2_sp: the state's anchor of leaf 'w'"),
    "l2_sp anchor": (lambda: mx.l2_sp(1.0, anchor=ROW).init(W), "mx.l2_sp: anchor of leaf 'w'"),
    **{
        f"lora_spd {what} of {leaf}": (
            lambda what=what, leaf=leaf: stepped(
                mx.lora_spd(1.0),
                params=LORA,
                **{"updates": LORA, "grad": LORA, what: {**LORA, leaf: LORA[leaf][:1]}},
            ),
            f"mx.lora_spd: {what} of leaf '{leaf}'",
        )
        for what, leaf in (("updates", "lora_a"), ("updates", "lora_b"), ("grad", "lora_b"))
    },
    "interpolate": (lambda: mx.interpolate(ROW, W, 0.5), "interpolate: pretrained of leaf 'w'"),
    "set_anchor": (lambda: mx.set_anchor(mx.spd(1.0).init(W), ROW), "set_anchor: leaf 'w'"),
    "set_anchor of l2_sp": (lambda: mx.set_anchor(mx.l2_sp(1.0).init(W), ROW), "set_anchor: leaf 'w'"),
    "attach_anchor": (lambda: mx.attach_anchor(mx.detach_anchor(mx.spd(1.0).init(W)), ROW), "the first is 'w'"),
}


@pytest.mark.parametrize("case", BROADCAST)
def test_nothing_is_broadcast_in_silence(case: str) -> None:
    action, message = BROADCAST[case]
    with pytest.raises(ValueError, match=message):
        action()


def test_l2_sp_notices_a_leaf_that_was_free_when_it_started() -> None:
    tx, state = mx.l2_sp({"w": 1.0}), mx.l2_sp({"w": None}).init(W)
    with pytest.raises(ValueError, match="leaf 'w' was free at init and is not now"):
        tx.update(W, state, W)


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
