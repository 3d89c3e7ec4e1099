"""Derivatives through steps are right, and no NaN is made on the way, not even one that is masked out after."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import maps_optax as mx

STACKED = {"w": np.array([1.5, 0.5]), "v": None}
HELD: dict[str, Callable[[], Any]] = {
    "spd": lambda: mx.spd(1.0),
    "spd stacked": lambda: mx.spd(STACKED),
    "mars": lambda: mx.spd(1.0, norm="mars"),
    "max_pull": lambda: mx.spd(3.0, max_pull=0.5),
    "maps": lambda: mx.maps({"w": 1, "v": None}, 1.5),
    "hypergradient": lambda: mx.spd(1.0, adapt=mx.hypergradient(0.1)),
    "drift budget": lambda: mx.spd(1.0, adapt=mx.drift_budget(0.05, rate=0.1)),
    "lora": lambda: mx.lora_spd(1.0, pairs={"^w$": "v"}),
}
PARAMS = {"w": jnp.asarray([[0.5, -1.0], [2.0, 1.5]]), "v": jnp.asarray([[1.0, 0.5], [-0.7, 0.3]])}


def after_three_steps(member: Any, params: Any) -> jax.Array:
    """A number of the weights after three steps, the last of which is asked to come back while momentum goes on."""
    tx = mx.chain(optax.sgd(0.2, momentum=0.9), member)
    state = tx.init(params)
    for pull in (-1.0, -1.0, 0.3):
        grads = jax.tree_util.tree_map(lambda x, pull=pull: pull * x**2, params)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return sum(jnp.sum(jnp.sin(x)) for x in jax.tree_util.tree_leaves(params))


@pytest.mark.parametrize("name", HELD)
def test_the_gradient_through_three_steps_is_that_of_finite_differences(name: str) -> None:
    """From θ0, where the displacement is 0."""

    def loss(params: Any) -> jax.Array:
        return after_three_steps(HELD[name](), params)

    gradient = jax.jit(jax.grad(loss))(PARAMS)
    for key, place in (("w", (0, 0)), ("w", (1, 1)), ("v", (1, 0))):
        ends = [loss({**PARAMS, key: PARAMS[key].at[place].add(step)}) for step in (1e-2, -1e-2)]
        assert gradient[key][place] == pytest.approx((float(ends[0]) - float(ends[1])) / 2e-2, rel=2e-2, abs=2e-3)


@pytest.mark.filterwarnings("ignore:maps_optax estimates")
@pytest.mark.parametrize("name", [*HELD, "estimate"])
def test_no_nan_is_made_where_jax_looks_for_them(name: str) -> None:
    member = mx.spd(1.0) if name == "estimate" else HELD[name]()
    make = optax.chain if name == "estimate" else mx.chain
    tx = make(optax.sgd(0.2, momentum=0.9), member)
    params = {**PARAMS, "v": jnp.zeros((2, 2))}
    with jax.debug_nans(True):
        state = tx.init(params)
        for slope in (0.0, -1.0, 0.5):
            grads = jax.tree_util.tree_map(lambda x, slope=slope: jnp.full_like(x, slope), params)
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            mx.metrics(state)
    assert all(np.isfinite(x).all() for x in jax.tree_util.tree_leaves(params))
