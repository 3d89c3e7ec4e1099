"""`mx.chain` is `optax.chain` that hands the gradient on."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import maps_optax as mx

OLD = not hasattr(optax, "tree_utils")
PARAMS = {"w": jnp.asarray([1.0, -2.0])}


def spy(seen: list[Any]) -> optax.GradientTransformationExtraArgs:
    def update(updates: Any, state: Any, params: Any = None, *, grad: Any = None, **extra: Any) -> Any:
        seen.append((grad, extra))
        return updates, state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def test_members_get_what_the_chain_received() -> None:
    seen: list[Any] = []
    tx = mx.chain(optax.scale(-3.0), optax.trace(0.9), spy(seen))
    updates, _ = tx.update(PARAMS, tx.init(PARAMS), PARAMS, value=7.0)
    np.testing.assert_array_equal(seen[0][0]["w"], PARAMS["w"])
    assert seen[0][1] == {"value": 7.0}
    np.testing.assert_array_equal(updates["w"], -3.0 * PARAMS["w"])


@pytest.mark.parametrize("outer", [mx.chain, optax.chain])
def test_a_chain_that_is_handed_the_gradient_hands_that_on(outer: Callable[..., Any]) -> None:
    seen: list[Any] = []
    tx = outer(optax.scale(2.0), mx.chain(optax.scale(5.0), spy(seen)))
    tx.update(PARAMS, tx.init(PARAMS), PARAMS, grad=jax.tree_util.tree_map(jnp.zeros_like, PARAMS))
    np.testing.assert_array_equal(seen[0][0]["w"], jnp.zeros(2))


def noisy_quadratic(tx: Any, steps: int = 60) -> tuple[float, float]:
    """Drift, and share of triggered steps, of a 20-dimensional quadratic."""
    rng = np.random.default_rng(0)
    params = {"w": jnp.zeros(20)}
    state, triggered = tx.init(params), 0.0
    for _ in range(steps):
        grads = {"w": params["w"] - 1.0 + jnp.asarray(rng.normal(size=20), jnp.float32)}
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        triggered += float(mx.metrics(state)["triggered"])
    return float(jnp.linalg.norm(params["w"])), triggered / steps


@pytest.mark.parametrize(
    "nested",
    [
        lambda: mx.chain(optax.adam(0.05), mx.chain(mx.spd(1.0), optax.identity())),
        lambda: mx.chain(optax.adam(0.05), optax.chain(optax.identity(), mx.chain(mx.spd(1.0)))),
        lambda: mx.chain(optax.scale_by_adam(), mx.chain(optax.scale(-0.05), mx.spd(1.0))),
    ],
)
def test_however_chains_are_nested_the_gradient_is_the_outermost_ones(nested: Callable[[], Any]) -> None:
    flat = noisy_quadratic(mx.chain(optax.adam(0.05), mx.spd(1.0)))
    np.testing.assert_allclose(noisy_quadratic(nested()), flat, rtol=1e-5)
    assert 0 < flat[1] < 0.5


@pytest.mark.parametrize(
    "tx",
    [
        lambda: optax.chain(optax.adam(0.05), mx.chain(mx.spd(1.0))),
        lambda: mx.chain(mx.maps({"w": 1}, 1.0, "constant"), optax.adamw(0.05)),
        lambda: mx.chain(optax.masked(optax.adam(0.05), {"w": False}), mx.spd(1.0)),
    ],
)
def test_a_projection_that_no_optimizer_comes_before_is_refused(tx: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match="leaf 'w' is the gradient itself, so no optimizer came before; put mx"):
        noisy_quadratic(tx(), steps=1)


def test_adapters_that_no_optimizer_comes_before_are_refused() -> None:
    params = {"lora_a": jnp.ones((3, 1)), "lora_b": jnp.zeros((1, 2))}
    tx = mx.chain(mx.lora_spd(1.0), optax.adam(0.1))
    with pytest.raises(ValueError, match="leaf 'lora_b' is the gradient itself"):
        tx.update(params, tx.init(params), params)


def accumulate(tx: Any, **extra: Any) -> Any:
    """Two micro-batches a step, whose gradients differ from their mean by more than it is large."""
    tx = optax.MultiSteps(tx, 2)
    params = {"w": jnp.zeros(3)}
    state = tx.init(params)
    for t in range(8):
        for noise in (3.0, -3.0):
            grads = {"w": jnp.full(3, (-1.0 if t < 4 else 0.5) + noise)}
            handed = {key: grads for key in extra}
            updates, state = tx.update(grads, state, params, **handed)
            params = optax.apply_updates(params, updates)
    return params["w"]


@pytest.mark.skipif(OLD, reason="MultiSteps of optax 0.1.5 takes no extra arguments")
def test_within_multi_steps_the_gradient_is_the_accumulated_one() -> None:
    def make() -> Any:
        return mx.chain(optax.adam(0.1), mx.chain(mx.spd(1.0)))

    right = accumulate(make())
    np.testing.assert_array_equal(accumulate(make(), grad=True), right)
    np.testing.assert_array_equal(accumulate(optax.chain(optax.identity(), make()), grad=True), right)
    assert not np.allclose(accumulate(optax.adam(0.1)), right, atol=1e-2)
    with pytest.raises(ValueError, match="one micro-batch's; leave it out"):
        accumulate(optax.chain(optax.adam(0.1), mx.spd(1.0)), grad=True)


def test_a_member_that_takes_no_gradient_is_called_without() -> None:
    def update(updates: Any, state: Any, params: Any = None, *, value: Any = 1.0) -> Any:
        return jax.tree_util.tree_map(lambda u: value * u, updates), state

    tx = mx.chain(optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update))
    np.testing.assert_array_equal(tx.update(PARAMS, tx.init(PARAMS), PARAMS)[0]["w"], PARAMS["w"])
    np.testing.assert_array_equal(tx.update(PARAMS, tx.init(PARAMS), PARAMS, value=3.0)[0]["w"], 3.0 * PARAMS["w"])


def test_the_state_tree_is_that_of_optax_chain() -> None:
    members = optax.clip_by_global_norm(1.0), optax.adamw(0.1), mx.spd(1.0)
    ours, theirs = mx.chain(*members).init(PARAMS), optax.chain(*members).init(PARAMS)
    assert jax.tree_util.tree_structure(ours) == jax.tree_util.tree_structure(theirs)


def test_members_without_extra_arguments_only() -> None:
    tx = mx.chain(optax.scale(2.0))
    np.testing.assert_array_equal(tx.update(PARAMS, tx.init(PARAMS))[0]["w"], 2.0 * PARAMS["w"])
