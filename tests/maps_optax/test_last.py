"""What MAPS needs around it: to stand last, and a momentum to act on; and how it tells that one is missing."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import maps_optax as mx

OLD = not hasattr(optax, "tree_utils")
START = {"w": jnp.linspace(0.5, 1.5, 8)}


def train(tx: Any, steps: int = 12, params: Any = START) -> tuple[Any, list[dict[str, float]]]:
    """Parameters after some steps out and some back, and the metrics of every step."""
    state, seen = tx.init(params), []
    step = jax.jit(tx.update)
    for t in range(steps):
        grads = jax.tree_util.tree_map(lambda x, t=t: jnp.full_like(x, -1.0 if t < 6 else 0.5), params)
        updates, state = step(grads, state, params)
        params = optax.apply_updates(params, updates)
        seen.append({key: float(value) for key, value in mx.metrics(state).items()})
    return params, seen


def drift(params: Any) -> float:
    return float(jnp.linalg.norm(params["w"] - START["w"]))


AFTER: dict[str, Callable[[], Any]] = {
    "the learning rate": lambda: mx.chain(optax.scale_by_adam(), mx.spd(2.0), optax.scale(-0.1)),
    "weight decay": lambda: mx.chain(optax.adam(0.1), mx.spd(2.0), optax.add_decayed_weights(-0.01)),
    "freezing": lambda: mx.chain(optax.adam(0.1), mx.spd(2.0), optax.set_to_zero()),
    "apply_every": lambda: mx.chain(optax.adam(0.1), mx.spd(2.0), optax.apply_every(2)),
    "adapters": lambda: mx.chain(optax.adam(0.1), mx.lora_spd(2.0, pairs={"^a$": "b"}), optax.scale(0.5)),
}


@pytest.mark.parametrize("what", AFTER)
def test_what_changes_the_step_after_it_is_seen_one_step_later(what: str) -> None:
    params = {"a": jnp.ones((4, 2)), "b": jnp.ones((2, 3))} if what == "adapters" else START
    _, seen = train(AFTER[what](), params=params)
    assert seen[0]["mismatch"] == 0
    assert seen[2]["mismatch"] > 1e-3


def test_the_mismatch_is_a_share_of_the_drift() -> None:
    """A step of 0.3 was judged, one of 0.1 was made."""
    tx = mx.chain(optax.sgd(0.3), mx.spd(1.0), optax.scale(1 / 3))
    _, seen = train(tx, steps=2)
    assert seen[1]["mismatch/w"] == pytest.approx(2 / 3, abs=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rate", [1e-1, 1e-4, 1e-8])
def test_rounding_is_no_mismatch(dtype: str, rate: float) -> None:
    """Even where it swallows the step."""
    params = {"w": jnp.asarray(np.random.default_rng(0).normal(size=1000), dtype)}
    _, seen = train(mx.chain(optax.adamw(rate, weight_decay=0.1), mx.spd(2.0)), steps=40, params=params)
    assert [m["mismatch"] for m in seen] == [0.0] * 40


def test_an_anchor_elsewhere_is_no_mismatch() -> None:
    _, seen = train(mx.chain(optax.adam(0.1), mx.spd(1.0, anchor={"w": jnp.zeros(8)})))
    assert seen[0]["drift"] > 1
    assert [m["mismatch"] for m in seen] == [0.0] * 12


@pytest.mark.parametrize(
    "tx",
    [
        lambda: mx.chain(optax.sgd(0.05), mx.spd(1.0)),
        pytest.param(
            lambda: optax.contrib.schedule_free(mx.chain(optax.sgd(0.05), mx.spd(1.0)), 0.05),
            marks=pytest.mark.skipif(not hasattr(optax, "contrib"), reason="this optax has no schedule_free"),
        ),
    ],
)
def test_without_momentum_there_are_triggers_and_no_pulls(tx: Callable[[], Any]) -> None:
    _, seen = train(tx())
    assert max(m["triggered"] for m in seen) == 1
    assert max(m["pulled"] for m in seen) == 0


def test_with_momentum_what_is_triggered_is_pulled() -> None:
    _, seen = train(mx.chain(optax.adam(0.1), mx.spd(1.0)))
    assert seen[7]["triggered"] == seen[7]["pulled"] == seen[7]["pulled/w"] == 1
    assert seen[2]["triggered"] == seen[2]["pulled"] == 0


@pytest.mark.parametrize("scheduled", [lambda count: -2.0, lambda count: jnp.where(count < 9, -2.0, jnp.nan)])
def test_a_schedule_below_zero_is_zero_in_the_step_and_in_what_is_told_of_it(scheduled: Callable[[Any], Any]) -> None:
    params, seen = train(mx.chain(optax.adam(0.1), mx.maps({"w": 1}, scheduled)))
    bare, _ = train(mx.chain(optax.adam(0.1), mx.spd(0.0)))
    np.testing.assert_array_equal(params["w"], bare["w"])
    assert seen[-1]["drift"] == pytest.approx(drift(params), rel=1e-5)
    assert max(m["pull"] for m in seen) == 0


def later(value: float) -> Callable[[Any], Any]:
    """A schedule that is sound at the start, where its value is known."""
    return lambda count: jnp.where(count == 0, 1.0, value)


@pytest.mark.skipif(OLD, reason="inject_hyperparams of optax 0.1.5 hands no gradient on")
@pytest.mark.parametrize(
    "injected, bare",
    [
        (lambda: optax.inject_hyperparams(mx.spd)(later(-1.0)), lambda: mx.spd(0.0)),
        (lambda: optax.inject_hyperparams(mx.spd)(1.0, max_pull=later(-1.0)), lambda: mx.spd(1.0, max_pull=0.0)),
        (lambda: optax.inject_hyperparams(mx.spd)(1.0, max_pull=later(np.nan)), lambda: mx.spd(0.0)),
        (lambda: optax.inject_hyperparams(mx.maps)({"w": 1}, later(np.nan)), lambda: mx.spd(0.0)),
    ],
)
def test_an_injected_value_out_of_range_is_zero(injected: Callable[[], Any], bare: Callable[[], Any]) -> None:
    params, seen = train(mx.chain(optax.adam(0.1), injected()))
    np.testing.assert_array_equal(params["w"], train(mx.chain(optax.adam(0.1), bare()))[0]["w"])
    assert seen[-1]["drift"] == pytest.approx(drift(params), rel=1e-5)
    assert seen[-1]["pull"] == 0


def test_a_value_that_is_known_to_be_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="λ of leaf 'w' is -1.0; λ must be finite and not negative"):
        optax.inject_hyperparams(mx.spd)(-1.0).init(START)


def test_an_injected_penalty_below_zero_is_zero() -> None:
    tx = optax.inject_hyperparams(mx.l2_sp)(later(-1.0))
    state = tx.init({"w": jnp.zeros(8)})
    for _ in range(2):
        updates, state = jax.jit(tx.update)(START, state, START)
    np.testing.assert_array_equal(updates["w"], START["w"])
