"""`mx.chain` is `optax.chain` that hands the gradient on."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import maps_optax as mx

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


def test_the_innermost_chain_decides() -> None:
    seen: list[Any] = []
    tx = mx.chain(optax.scale(2.0), mx.chain(optax.scale(5.0), spy(seen)))
    tx.update(PARAMS, tx.init(PARAMS), PARAMS, grad=jax.tree_util.tree_map(jnp.zeros_like, PARAMS))
    np.testing.assert_array_equal(seen[0][0]["w"], 2.0 * PARAMS["w"])


def test_the_state_tree_is_that_of_optax_chain() -> None:
    members = optax.clip_by_global_norm(1.0), optax.adamw(0.1), mx.spd(1.0)
    ours, theirs = mx.chain(*members).init(PARAMS), optax.chain(*members).init(PARAMS)
    assert jax.tree_util.tree_structure(ours) == jax.tree_util.tree_structure(theirs)


def test_members_without_extra_arguments_only() -> None:
    tx = mx.chain(optax.scale(2.0))
    np.testing.assert_array_equal(tx.update(PARAMS, tx.init(PARAMS))[0]["w"], 2.0 * PARAMS["w"])
