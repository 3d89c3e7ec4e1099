"""λ and positions: the schedules, the stack, and one clear error for each bad input."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import maps_optax as mx

PARAMS = {"vision": {"block_2": jnp.ones((2, 3)), "block_10": jnp.ones((2, 3))}, "head": jnp.ones(4)}
STACK = mx.LayerStack({"vision": {r"vision/block_(\d+)$": "block"}}, free=[r"head$"])


def quarters(k: int, size: int) -> float:
    return k / 4


@pytest.mark.parametrize(
    "schedule, expected",
    [
        ("linear", [1, 0.75, 0.5, 0.25, 0]),
        ("cosine", [1, 0.5 + 0.5 * 2**-0.5, 0.5, 0.5 - 0.5 * 2**-0.5, 0]),
        ("constant", [1, 1, 1, 1, 1]),
        ("exponential", [1, 0.01**0.25, 0.1, 0.01**0.75, 0.01]),
        ("step", [1, 1, 0, 0, 0]),
        (lambda k, size: k / size, [0.2, 0.4, 0.6, 0.8, 1.0]),
        (f"{__name__}:quarters", [0.25, 0.5, 0.75, 1.0, 1.25]),
    ],
)
def test_schedules(schedule: Any, expected: list[float]) -> None:
    got = mx.strengths(np.arange(1, 6), np.zeros((5, 2)), 3.0, schedule)
    np.testing.assert_allclose(got, 3.0 * np.array(expected), atol=1e-12)


def test_a_stack_of_one_layer_is_all_first() -> None:
    for schedule in ("linear", "cosine", "constant", "exponential", "step"):
        assert mx.strengths(1, np.zeros(2), 2.0, schedule) == 2.0


def test_a_scheduled_lambda_max_counts_at_step_zero() -> None:
    assert mx.strengths(1, np.zeros(2), optax.linear_schedule(2.0, 0.0, 5)) == 2.0


def test_positions_as_a_callable() -> None:
    assert mx.strengths(lambda p: {"a": 2, "b": 1}, {"a": np.ones(1), "b": np.ones(1)}, 1.0) == {"a": 0.0, "b": 1.0}


def test_dots_in_names_are_levels() -> None:
    flat = {"vision.block_2": np.ones(2), "vision.block_10": np.ones(2), "head": np.ones(1)}
    assert mx.strengths(STACK, flat, 1.0) == {"vision.block_2": 1.0, "vision.block_10": 0.0, "head": 0.0}


def test_a_pattern_starts_at_a_key() -> None:
    with pytest.raises(ValueError, match="'subvision/block_3'"):
        mx.strengths(STACK, {**PARAMS, "subvision": {"block_3": np.ones(1)}}, 1.0)


def spd(strength: Any, params: Any = PARAMS, **options: Any) -> Any:
    return mx.spd(strength, **options).init(params)


def like(vision: Any, head: Any = None) -> Any:
    return {"vision": {"block_2": vision, "block_10": 1.0}, "head": head}


def rules(**changes: Any) -> Any:
    return mx.LayerStack(**{"modules": STACK.modules, "free": STACK.free, **changes})


BAD = {
    "unmatched leaf": (lambda: mx.maps(rules(free=[]), 1.0).init(PARAMS), "no rule .* matches leaf 'head'"),
    "idle rule": (lambda: mx.maps(rules(free=["head$", "lora"]), 1.0).init(PARAMS), "rule 'lora' .* matches no leaf"),
    "vector too long": (lambda: spd(like(np.ones(3))), r"'vision/block_2' has shape \(3,\)"),
    "matrix": (lambda: spd(like(np.ones((2, 3)))), r"'vision/block_2' has shape \(2, 3\)"),
    "negative": (lambda: spd(like(-0.1)), "'vision/block_2' is -0.1"),
    "negative in a vector": (lambda: spd(like(np.array([1.0, -1.0]))), "'vision/block_2' is"),
    "nan": (lambda: spd(like(float("nan"))), "'vision/block_2' is nan"),
    "infinite": (lambda: spd(float("inf")), "is inf"),
    "negative λ_max": (lambda: mx.maps(STACK, -1.0), "lambda_max is -1.0"),
    "infinite λ_max": (lambda: mx.maps(STACK, float("inf")), "lambda_max is inf"),
    "missing leaf": (lambda: spd({"head": 1.0}), "has no leaf 'vision/block_10', 'vision/block_2'"),
    "extra leaf": (lambda: spd({**like(1.0), "tail": 1.0}), "has a leaf 'tail'"),
    "negative λ, as a JAX array": (lambda: spd(jnp.float32(-1.0)), "is -1.0"),
    "nan λ, as a JAX array": (lambda: spd(jnp.float32(np.nan)), "is nan"),
    "negative λ_max, as a JAX array": (lambda: mx.maps(STACK, jnp.float32(-1.0)), "lambda_max is -1.0"),
    "integer leaf": (lambda: spd(1.0, {"ids": jnp.arange(3)}), "leaf 'ids' has dtype int32"),
    "anchor of another shape": (lambda: spd(1.0, {"w": jnp.ones(3)}, anchor={"w": jnp.ones(2)}), "leaf 'w' has shape"),
    "anchor of another tree": (lambda: spd(1.0, {"w": jnp.ones(3)}, anchor={"v": jnp.ones(3)}), "no leaf 'w'"),
    "integer anchor dtype": (lambda: mx.spd(1.0, anchor_dtype=jnp.int8), "anchor_dtype"),
    "unknown norm": (lambda: mx.spd(1.0, norm="l1"), "norm is 'l1'"),
    "unknown criterion": (lambda: mx.spd(1.0, criterion="sign"), "criterion is 'sign'"),
    "negative max_pull": (lambda: mx.spd(1.0, max_pull=-1.0), "max_pull is -1.0"),
    "momentum of one": (lambda: mx.spd(1.0, b1=1.0), "b1 is 1.0"),
    "mars over an axis name": (lambda: mx.spd(1.0, norm="mars", axis_name="x"), "norm='l2'"),
    "unknown schedule": (lambda: mx.strengths(STACK, PARAMS, 1.0, "lineal"), "unknown schedule 'lineal'"),
    "half a name": (lambda: mx.strengths(STACK, PARAMS, 1.0, "json:"), "unknown schedule 'json:'"),
    "schedule of no module": (lambda: mx.strengths(STACK, PARAMS, 1.0, "jsen:x"), "'jsen:x': importing jsen failed"),
    "schedule of no function": (lambda: mx.strengths(STACK, PARAMS, 1.0, "json:x"), "'json:x': json has no function x"),
    "negative schedule": (lambda: mx.strengths(STACK, PARAMS, 1.0, lambda k, n: -1.0), "= -1.0 for layer k="),
    "position zero": (lambda: mx.strengths(0, np.ones(2), 1.0), "position of leaf .* is 0"),
    "fractional position": (lambda: mx.strengths(1.5, np.ones(2), 1.0), "position of leaf"),
    "too many positions": (lambda: mx.strengths(np.arange(1, 4), np.ones(2), 1.0), "has 3 entries"),
    "bad regular expression": (lambda: rules(free=["(head"]), r"'\(head' is no regular expression"),
    "bad place": (lambda: rules(modules={"v": {"v": "middle"}}), "place 'middle'"),
    "block without number": (lambda: rules(modules={"v": {"v": "block"}}), "has 0 groups"),
    "block that is no number": (
        lambda: mx.strengths(mx.LayerStack({"v": {"(w)": "block"}}), {"w": np.ones(1)}, 1.0),
        "reads block number 'w'",
    ),
    "stacked scalar": (
        lambda: mx.strengths(mx.LayerStack({"v": {"w": "stacked"}}), {"w": np.ones(())}, 1.0),
        "'w' is a scalar",
    ),
    "a string for a list of patterns": (lambda: rules(free="head"), "free is 'head'; give a list"),
    "negative tail": (lambda: rules(tail=-1), "tail is -1"),
    "missing positions": (lambda: mx.strengths({"vision": 1}, PARAMS, 1.0), "has no leaf 'head'"),
    "stray optional": (lambda: rules(optional=["nothing"]), "optional names 'nothing'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_that_names_it(case: str) -> None:
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("make", [lambda: mx.spd(1.0), lambda: mx.maps({"w": 1}, 1.0), lambda: mx.l2_sp(1.0)])
def test_bad_updates_are_one_line_that_names_it(make: Any) -> None:
    tx, params = make(), {"w": jnp.ones(2)}
    state = tx.init(params)
    with pytest.raises(ValueError, match="needs the current parameters"):
        tx.update(params, state)
    with pytest.raises(ValueError, match="updates has no leaf 'w'"):
        tx.update({"v": jnp.ones(2)}, state, params)
    with pytest.raises(ValueError, match="has no leaf 'v'"):
        tx.update({**params, "v": params["w"]}, state, {**params, "v": params["w"]}, grad=params)
    with pytest.raises(ValueError, match="attach_anchor"):
        tx.update(params, mx.detach_anchor(state), params)


@pytest.mark.parametrize("given", [jnp.ones(3), jnp.ones(()), None])
def test_updates_or_gradients_of_another_shape(given: Any) -> None:
    """Broadcasting, or ⟨u, d⟩ in place of a gradient that is not there, would go unnoticed."""
    tx, params = mx.spd(1.0), {"w": jnp.ones((2, 3))}
    for updates, grad, what in (({"w": given}, params, "updates"), (params, {"w": given}, "grad")):
        with pytest.raises(ValueError, match=f"{what} of leaf 'w' has shape") as error:
            tx.update(updates, tx.init(params), params, grad=grad)
        assert "\n" not in str(error.value)


def test_a_state_of_other_parameters_is_refused() -> None:
    tx = mx.spd({"w": np.ones(3)})
    state = tx.init({"w": jnp.ones((3, 2))})
    with pytest.raises(ValueError, match="leaf 'w' has shape"):
        tx.update({"w": jnp.ones((3, 4))}, state, {"w": jnp.ones((3, 4))})
    free = mx.spd({"w": None}).init({"w": jnp.ones((3, 2))})
    with pytest.raises(ValueError, match="'w' was free at init"):
        tx.update({"w": jnp.ones((3, 2))}, free, {"w": jnp.ones((3, 2))})
