"""λ that moves: each rule is its equation, and moves λ the way it says."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import maps_optax as mx

LR, MOMENTUM = 0.05, 0.8
SHAPES = {"matrix": (4, 3), "vector": (5,), "stack": (3, 2, 2), "zero": (4,), "free": (2, 2)}
START = {"matrix": 1.5, "vector": 0.4, "stack": np.array([2.0, 0.0, 0.7]), "zero": 1.0, "free": 0.0}
BUDGET = 0.15
RULES: dict[str, Callable[[], Any]] = {
    "hypergradient": lambda: mx.hypergradient(0.3, maximum=2.5),
    "drift_budget": lambda: mx.drift_budget(BUDGET, 0.2, maximum=2.5),
}


def reference(rule: str, theta0: np.ndarray, grads: np.ndarray, lam: float) -> tuple[np.ndarray, np.ndarray]:
    """θ and λ of each step of one tensor, by the equations of the docstrings, read literally."""
    theta, trace, kept, start = theta0, np.zeros_like(theta0), [], lam
    last_r, last_moved = 0.0, np.zeros_like(theta0)  # r and d̃ of the step before, r = 0 where it was not triggered
    for g in grads:
        d = theta - theta0
        if start > 0 and rule == "hypergradient":
            if last_r > 0:
                lam = np.clip(lam + 0.3 * np.sign(last_r * (g * last_moved).sum()), 1e-3, 2.5)
            else:
                lam = np.clip(lam, 1e-3, 2.5)
        elif start > 0 and np.linalg.norm(theta0) > 0:
            excess = np.linalg.norm(d) / (BUDGET * np.linalg.norm(theta0)) - 1
            lam = np.clip(lam + 0.2 * min(excess, 1), 0, 2.5)
        trace = MOMENTUM * trace + g
        moved, r = d - LR * trace, 0.0
        if (g * d).sum() > 0:
            r = max(np.linalg.norm(moved) - np.linalg.norm(d), 0) / np.linalg.norm(moved)
        theta = theta0 + (1 - lam * r) * moved
        last_r, last_moved = r, moved
        kept.append((theta, lam))
    return np.stack([x[0] for x in kept]), np.stack([x[1] for x in kept])


@pytest.mark.parametrize("rule", RULES)
def test_fifty_steps_of_the_equations_in_float64(rule: str, x64: None) -> None:
    rng = np.random.default_rng(11)
    theta0 = {k: rng.normal(size=s) * (k != "zero") for k, s in SHAPES.items()}
    drive = {k: rng.normal(size=s) for k, s in SHAPES.items()}
    swing = np.sin(np.arange(50) / 3) + 0.2
    grads = {k: np.stack([f * drive[k] + 0.5 * rng.normal(size=s) for f in swing]) for k, s in SHAPES.items()}
    tx = mx.chain(optax.sgd(LR, momentum=MOMENTUM), mx.spd(START, adapt=RULES[rule]()))
    params = jax.tree_util.tree_map(jnp.asarray, theta0)
    state, step = tx.init(params), jax.jit(tx.update)
    thetas, lambdas = [], []
    for t in range(50):
        updates, state = step({k: jnp.asarray(g[t]) for k, g in grads.items()}, state, params)
        params = optax.apply_updates(params, updates)
        thetas.append(params)
        lambdas.append(np.asarray(state[1].strength))
    assert state[1].strength.dtype == jnp.float64
    moved = np.stack(lambdas).T  # matrix, stack[0..2], vector, zero
    for k, rows in {"matrix": [0], "stack": [1, 2, 3], "vector": [4], "zero": [5], "free": []}.items():
        mine = np.stack([np.asarray(p[k]) for p in thetas])
        if k == "stack":
            parts = [reference(rule, theta0[k][i], grads[k][:, i], START[k][i]) for i in range(3)]
            expected, lams = np.stack([p[0] for p in parts], axis=1), [p[1] for p in parts]
        else:
            expected, lam = reference(rule, theta0[k], grads[k], START[k])
            lams = [lam]
        np.testing.assert_allclose(mine, expected, rtol=0, atol=1e-10, err_msg=k)
        for row, lam in zip(rows, lams):
            np.testing.assert_allclose(moved[row], lam, rtol=0, atol=1e-10, err_msg=k)
    spread = moved.max(axis=1) - moved.min(axis=1)
    assert (spread[[0, 1, 3, 4]] >= 0.3).all()
    assert (moved[2] == 0).all()  # λ = 0 at the start, and free for good
    if rule == "drift_budget":
        assert (moved[5] == 1.0).all()  # θ0 = 0 has no relative drift


def fit(target: float, adapt: Any, *, lam: float = 1.0, noise: float = 1.0) -> tuple[float, float]:
    """Mean relative drift and λ over the second half of a run from θ0 = 1, on a noisy quadratic around θ0 + target."""
    rng = np.random.default_rng(0)
    tx = mx.chain(optax.adam(0.02), mx.spd(lam, adapt=adapt))
    params, seen = {"w": jnp.ones(8)}, []
    state, step = tx.init(params), jax.jit(tx.update)
    for _ in range(600):
        grads = {"w": params["w"] - 1 - target + noise * jnp.asarray(rng.normal(size=8), jnp.float32)}
        updates, state = step(grads, state, params)
        params = optax.apply_updates(params, updates)
        seen.append((state[1].drift[0] / 8**0.5, state[1].strength[0]))
    drift, strength = np.asarray(seen[300:], np.float64).mean(axis=0)
    return float(drift), float(strength)


def test_hypergradient_holds_where_home_is_best_and_lets_go_where_it_is_not() -> None:
    for noise in (1.0, 3.0):
        assert fit(0.0, mx.hypergradient(0.05), noise=noise)[1] > 1.3
        assert fit(1.0, mx.hypergradient(0.05), noise=noise)[1] < 0.6


def test_drift_budget_is_kept_and_lets_go_while_it_is() -> None:
    plain, _ = fit(0.4, None, lam=1e-3, noise=3.0)
    for share, tolerance in ((0.5, 0.1), (0.25, 0.2)):
        budget = share * plain
        drift, strength = fit(0.4, mx.drift_budget(budget, 0.1), lam=1e-3, noise=3.0)
        assert drift == pytest.approx(budget, rel=tolerance)
        assert 1 < strength < 4
    assert fit(0.4, mx.drift_budget(10.0, 0.1))[1] == 0


def test_hypergradient_finds_back_from_its_floor() -> None:
    tx = mx.spd(1e-3, adapt=mx.hypergradient(0.5))
    theta, theta0 = jnp.asarray([1.0, 0.0]), jnp.zeros(2)
    state, home, out = tx.init(theta0), jnp.asarray([1.0, 0.0]), jnp.asarray([0.1, 0.0])
    for expected in (1e-3, 0.501, 1.001):
        _, state = tx.update(out, state, theta, grad=home)
        assert float(state.strength[0]) == pytest.approx(expected)
    _, state = tx.update(out, state, theta, grad=-home)
    assert float(state.strength[0]) == pytest.approx(0.501)
    _, state = tx.update(out, state, theta, grad=-home)  # nothing was pulled, so there is nothing to learn
    assert float(state.strength[0]) == pytest.approx(0.501)


def test_hypergradient_turns_where_the_pull_went_past_the_anchor() -> None:
    """λr > 1 leaves θ on the other side, where the gradient that points back to θ0 objects to the pull."""
    tx = mx.spd(3.0, adapt=mx.hypergradient(0.5))
    state = tx.init(jnp.zeros(1))
    updates, state = tx.update(jnp.asarray([9.0]), state, jnp.asarray([1.0]), grad=jnp.ones(1))
    theta = 1.0 + updates
    assert theta[0] < 0 and state.pull[0] > 1
    _, state = tx.update(jnp.zeros(1), state, theta, grad=jnp.asarray([-1.0]))  # asks to come home, from there
    assert state.strength[0] == 2.5


def test_nan_teaches_nothing() -> None:
    for adapt in (mx.hypergradient(0.5), mx.drift_budget(0.1, 0.5)):
        tx = mx.spd(1.0, adapt=adapt)
        state = tx.init(jnp.ones(2))
        _, state = tx.update(jnp.full(2, 0.1), state, jnp.full(2, 1.1), grad=jnp.ones(2))
        before = state.strength
        broken = jnp.full(2, np.nan)
        _, after = tx.update(broken, state, broken, grad=broken)
        np.testing.assert_array_equal(after.strength, before)


@pytest.mark.parametrize(
    "make", [lambda lam, adapt: mx.spd(lam, adapt=adapt), lambda lam, adapt: mx.maps({"w": 1}, lam, adapt=adapt)]
)
def test_a_jax_scalar_of_zero_is_a_start_and_not_freedom(make: Any) -> None:
    tx = make(jnp.asarray(0.0), mx.drift_budget(0.01, 0.25))
    params = {"w": jnp.ones(3)}
    state = tx.init(params)
    for expected in (0.25, 0.5):
        _, state = tx.update(params, state, {"w": jnp.full(3, 1.5)}, grad=params)
        assert float(state.strength[0]) == expected


def test_a_budget_for_each_layer() -> None:
    params, moved = jnp.ones((2, 4)), jnp.full((2, 4), 1.2)
    for budget in (np.array([0.1, 0.4]), lambda now: 0.1 * now.start.max() / now.start):
        tx = mx.spd(np.array([2.0, 0.5]), adapt=mx.drift_budget(budget, 0.1))
        _, state = tx.update(params, tx.init(params), moved, grad=params)
        np.testing.assert_allclose(state.strength, [2.1, 0.45], rtol=1e-6)


def test_what_a_rule_sees() -> None:
    seen: list[mx.AdaptStats] = []

    def rule(now: mx.AdaptStats) -> Any:
        seen.append(now)
        return now.strength + 1

    theta0 = {"a": jnp.asarray([[3.0, 4.0], [0.0, 1.0]]), "b": jnp.ones(1), "free": jnp.ones(2)}
    tx = mx.spd({"a": np.array([1.0, 0.0]), "b": 0.5, "free": None}, adapt=rule)
    state = tx.init(theta0)
    theta = {"a": theta0["a"] + jnp.asarray([[1.0, 0.0], [0.0, 2.0]]), "b": theta0["b"], "free": theta0["free"]}
    step = {"a": jnp.asarray([[1.0, 0.0], [0.0, 1.0]]), "b": jnp.ones(1), "free": jnp.ones(2)}
    grad = {"a": jnp.asarray([[1.0, 0.0], [0.0, -1.0]]), "b": jnp.ones(1), "free": jnp.ones(2)}
    for _ in range(2):
        _, state = tx.update(step, state, theta, grad=grad)
    first, second = (jax.tree_util.tree_map(np.asarray, now) for now in seen)
    expected = mx.AdaptStats(
        count=0, start=[1, 0, 0.5], strength=[1, 0, 0.5], triggered=[0, 0, 0], pull=[0, 0, 0], home=[1, -1, 0],
        ratio=[0.5, 1 / 3, 1], drift=[1, 2, 0], norm=[5, 1, 1],
    )  # fmt: skip
    for name, wanted in expected._asdict().items():
        np.testing.assert_allclose(getattr(first, name), wanted, rtol=1e-6, err_msg=name)
    np.testing.assert_allclose(second.strength, [2, 0, 1.5])
    np.testing.assert_allclose(second.pull, [2 * 0.5, 0, 0])
    assert second.count == 1 and second.triggered.tolist() == [1, 0, 0]
    assert second.start.tolist() == [1, 0, 0.5]


@pytest.mark.parametrize("value", [np.nan, -1.0, np.inf])
def test_a_lambda_that_is_none_is_not_taken(value: float) -> None:
    tx = mx.spd(0.5, adapt=lambda now: jnp.full(1, value))
    _, state = jax.jit(tx.update)(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2), grad=jnp.ones(2))
    assert state.strength.tolist() == [0.5]


@pytest.mark.filterwarnings("ignore:maps_optax estimates")
@pytest.mark.parametrize("rule", RULES)
def test_the_estimate_adapts_as_well(rule: str) -> None:
    params = {"w": jnp.ones(3)}
    tx = optax.chain(optax.adam(0.1), mx.spd(1.0, adapt=RULES[rule]()))
    state, step, seen = tx.init(params), jax.jit(tx.update), []
    for t in range(20):
        updates, state = step({"w": jnp.full(3, -1.0 if t < 8 else 0.4)}, state, params)
        params = optax.apply_updates(params, updates)
        seen.append(float(state[1].strength[0]))
    assert np.ptp(seen) > 0.2 and np.isfinite(seen).all()


@pytest.mark.parametrize("rule", RULES)
def test_bf16_parameters_adapt_in_float32(rule: str) -> None:
    params = {"w": jnp.ones(3, jnp.bfloat16)}
    tx = mx.spd(1.0, adapt=RULES[rule]())
    updates, state = tx.update(params, tx.init(params), {"w": params["w"] * 1.5}, grad=params)
    assert updates["w"].dtype == jnp.bfloat16 and state.strength.dtype == jnp.float32


def test_without_a_rule_the_state_is_what_it_was() -> None:
    params = {"w": jnp.ones(3)}
    plain, adapted = (mx.spd(1.0, adapt=adapt).init(params) for adapt in (None, mx.hypergradient(0.1)))
    assert jax.tree_util.tree_structure(plain) == jax.tree_util.tree_structure(adapted)


def test_metrics_show_lambda_where_asked() -> None:
    tx = mx.spd(np.array([1.0, 0.5]), adapt=mx.drift_budget(0.01, 0.25))
    params = jnp.ones((2, 3))
    _, state = tx.update(params, tx.init(params), params + 1, grad=params)
    shown = mx.metrics(state, strength=True)
    assert {k: float(v) for k, v in shown.items() if "strength" in k} == {
        "strength/<the only leaf>[0]": 1.25,
        "strength/<the only leaf>[1]": 0.75,
    }
    assert not any("strength" in k for k in mx.metrics(state))


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "λ = 0": (lambda: mx.spd(0.0, adapt=mx.hypergradient(0.1)), "mx.spd: λ is 0.*start from a small λ"),
    "λ_max = 0": (lambda: mx.maps({"w": 1}, 0.0, adapt=mx.hypergradient(0.1)), "mx.maps: λ is 0"),
    "a schedule": (
        lambda: mx.maps({"w": 1}, optax.constant_schedule(1.0), adapt=mx.hypergradient(0.1)),
        "lambda_max is a schedule",
    ),
    "mars": (lambda: mx.spd(1.0, norm="mars", adapt=mx.hypergradient(0.1)), "use norm='l2'"),
    "rate": (lambda: mx.hypergradient(0.0), "rate is 0.0; it must be positive"),
    "maximum": (lambda: mx.drift_budget(0.1, 0.1, maximum=float("inf")), "maximum is inf"),
    "budget": (lambda: mx.drift_budget([0.1, -0.1], 0.1), r"budget is \[0.1, -0.1\]"),
    "budget length": (lambda: one_step(mx.drift_budget([0.1, 0.1], 0.1)), r"budget has shape \(2,\), but there are 1"),
    "rule length": (lambda: one_step(lambda now: jnp.ones(2)), r"adapt gives λ of shape \(2,\) for 1 layers"),
}


def one_step(adapt: Any) -> Any:
    tx = mx.spd(1.0, adapt=adapt)
    return tx.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2), grad=jnp.ones(2))


@pytest.mark.parametrize("what", BAD)
def test_errors_name_the_remedy(what: str) -> None:
    make, message = BAD[what]
    with pytest.raises(ValueError, match=message):
        make()
