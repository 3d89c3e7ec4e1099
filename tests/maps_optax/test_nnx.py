"""States inside `nnx.Optimizer`, which keeps every array of them in a variable."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import maps_optax as mx

nnx = pytest.importorskip("flax.nnx")
OTHER = {"w": jnp.full((3, 2), 5.0), "b": jnp.zeros(2)}


class Model(nnx.Module):  # type: ignore[misc, name-defined]
    def __init__(self) -> None:
        self.w, self.b = nnx.Param(jnp.ones((3, 2))), nnx.Param(jnp.zeros(2))


def step(optimizer: Any, model: Any, slope: float) -> None:
    grads = jax.tree_util.tree_map(lambda x: jnp.full_like(x, slope), nnx.state(model, nnx.Param))
    holder = [model] if "model" in inspect.signature(nnx.Optimizer.update).parameters else []  # since flax 0.11
    optimizer.update(*holder, grads)


def optimizer_of(model: Any) -> Any:
    return nnx.Optimizer(model, mx.chain(optax.adam(0.1), mx.spd({"w": np.ones(3), "b": 1.0})), wrt=nnx.Param)


def test_a_new_anchor_is_held_from_the_next_step_on() -> None:
    model = Model()
    optimizer = optimizer_of(model)
    step(optimizer, model, -1.0)
    optimizer.opt_state = mx.set_anchor(optimizer.opt_state, nnx.state(model, nnx.Param))
    assert float(mx.metrics(optimizer.opt_state)["drift"]) == 0
    step(optimizer, model, -1.0)
    assert float(mx.metrics(optimizer.opt_state)["drift/b"]) == pytest.approx(0.1 * 2**0.5, rel=1e-3)


def test_an_anchor_that_was_taken_out_and_put_back_changes_nothing() -> None:
    kept, moved = Model(), Model()
    theta0 = nnx.state(Model(), nnx.Param)
    first, second = optimizer_of(kept), optimizer_of(moved)
    for slope in (-1.0, -1.0, 0.5, 0.5):
        step(first, kept, slope)
        step(second, moved, slope)
        second.opt_state = mx.attach_anchor(mx.detach_anchor(second.opt_state), theta0)
    np.testing.assert_array_equal(kept.w[...], moved.w[...])
    assert float(mx.metrics(first.opt_state)["pulled"]) == 1


def test_the_state_of_the_whole_optimizer_is_told_from_its_opt_state() -> None:
    optimizer = optimizer_of(Model())
    for function in (mx.metrics, mx.detach_anchor):
        with pytest.raises(ValueError, match=r"holds no SPDState.*its opt_state, not nnx.state\(optimizer\)"):
            function(nnx.state(optimizer))
