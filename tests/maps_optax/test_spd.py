"""What one step of Selective Projection Decay does, and what its estimate is worth."""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import maps_optax as mx


def one_step(
    theta: Any, theta0: Any, update: Any, grad: Any, strength: Any = 1.0, **options: Any
) -> tuple[jax.Array, mx.SPDState]:
    """θ_t for one array under given θ_{t−1}, θ0, u and g."""
    tx = mx.spd(strength, **options)
    state = tx.init(jnp.asarray(theta0))
    updates, state = jax.jit(lambda u, s, p, g: tx.update(u, s, p, grad=g))(
        jnp.asarray(update), state, jnp.asarray(theta), jnp.asarray(grad)
    )
    return jnp.asarray(theta) + updates, state


def test_the_equation() -> None:
    theta, _ = one_step([3.0, 0.0], [0.0, 0.0], [1.0, 0.0], [1.0, 0.0], strength=0.5)
    np.testing.assert_allclose(theta, [4 - 0.5 * (1 / 4) * 4, 0.0], rtol=1e-6)


def test_strength_one_keeps_the_radius() -> None:
    theta, state = one_step([3.0, 4.0], [0.0, 0.0], [2.0, 1.0], [1.0, 1.0])
    assert float(jnp.linalg.norm(theta)) == pytest.approx(5.0, rel=1e-6)
    assert float(state.drift[0]) == pytest.approx(5.0, rel=1e-6)


def test_a_step_that_comes_nearer_is_left_alone() -> None:
    theta, state = one_step([3.0, 4.0], [0.0, 0.0], [-1.0, -1.0], [1.0, 1.0])
    np.testing.assert_array_equal(theta, [2.0, 3.0])
    assert state.triggered[0] == 1 and state.pull[0] == 0


def test_a_gradient_that_asks_for_more_leaves_the_update_untouched() -> None:
    update = np.array([0.1, 0.7], np.float32)
    for grad in ([-1.0, -1.0], [0.0, 0.0], [np.nan, 1.0], [-0.0, 0.0]):
        theta, state = one_step([3.0, 4.0], [0.0, 0.0], update, grad, strength=3.0)
        np.testing.assert_array_equal(theta, np.float32([3.0, 4.0]) + update)
        assert state.triggered[0] == 0


def test_lambda_zero_is_adam_bit_for_bit() -> None:
    params = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)}
    strengths = {"w": np.array([0.0, 1.0, 0.0, 1.0])}
    for strength in (0.0, {"w": None}, strengths):
        ours, adam = mx.chain(optax.adam(0.1), mx.spd(strength)), optax.adam(0.1)
        p, q, s, t = params, params, ours.init(params), adam.init(params)
        for i in range(12):
            sign = -1.0 if i < 6 else 1.0
            u, s = jax.jit(ours.update)(jax.tree_util.tree_map(lambda x, k=sign: k * x, p), s, p)
            v, t = jax.jit(adam.update)(jax.tree_util.tree_map(lambda x, k=sign: k * x, q), t, q)
            p, q = optax.apply_updates(p, u), optax.apply_updates(q, v)
        rows = slice(None, None, 2) if strength is strengths else slice(None)
        np.testing.assert_array_equal(p["w"][rows], q["w"][rows])
        assert strength is not strengths or not np.array_equal(p["w"][1::2], q["w"][1::2])


@pytest.mark.parametrize("growth", [1e-1, 1e-3, 1e-5, 1e-6])
def test_bf16_parameters_have_the_ratio_of_float64(growth: float) -> None:
    rng = np.random.default_rng(1)
    theta0 = jnp.asarray(rng.normal(size=4096), jnp.bfloat16)
    theta = (theta0 + jnp.asarray(rng.normal(size=4096), jnp.bfloat16)).astype(jnp.bfloat16)
    d = np.asarray(theta, np.float64) - np.asarray(theta0, np.float64)
    update = jnp.asarray(growth * d, jnp.bfloat16)
    q = d + np.asarray(update, np.float64)
    r = 1 - np.linalg.norm(d) / np.linalg.norm(q)
    _, state = one_step(theta, theta0, update, theta - theta0)
    assert float(state.pull[0]) == pytest.approx(r, rel=1e-4)  # 1e-2 is promised
    assert r == pytest.approx(growth, rel=0.2)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("anchor_dtype", [None, "float32"])
def test_the_update_keeps_its_dtype_and_the_statistics_are_float32(dtype: str, anchor_dtype: Any) -> None:
    theta0, theta, update, grad = (jnp.asarray(x, dtype) for x in ([0.0, 0.0], [3.0, 4.0], [3.0, 4.0], [1.0, 1.0]))
    tx = mx.spd(1.0, anchor_dtype=anchor_dtype)
    updates, state = tx.update(update, tx.init(theta0), theta, grad=grad)
    assert updates.dtype == jnp.dtype(dtype)
    np.testing.assert_allclose(np.asarray(updates, np.float32), [0.0, 0.0], atol=1e-6)
    assert {x.dtype for x in (state.drift, state.pull, state.carry, state.strength)} == {jnp.dtype("float32")}


def test_degenerate_leaves_and_gradients_make_no_nan() -> None:
    zeros = np.zeros(3, np.float32)
    for theta, update, grad in (
        (zeros, zeros, zeros),
        (zeros, zeros, zeros + 1),
        (zeros + 1, -zeros - 1, zeros + 1),  # lands on θ0
        (zeros + 1, zeros, zeros + 1),
        (zeros + 1e-30, zeros + 1e-30, zeros + 1),
        (zeros + 1, zeros + 1, zeros + np.inf),
        (zeros + 1, zeros + 1, zeros + np.nan),
    ):
        result, state = one_step(theta, zeros, update, grad, strength=2.0)
        assert np.isfinite(result).all()
        assert all(np.isfinite(x).all() for x in (state.pull, state.drift, state.carry))
    for broken in (np.inf, np.nan):  # passed on as it came
        result, state = one_step(zeros + 1, zeros, zeros + broken, zeros + 1)
        np.testing.assert_array_equal(result, zeros + broken)
        assert state.pull[0] == 0
    result, _ = one_step(zeros + np.nan, zeros, zeros + 1, zeros + 1)
    assert np.isnan(result).all()
    empty, _ = one_step(np.zeros((0, 3)), np.zeros((0, 3)), np.zeros((0, 3)), np.zeros((0, 3)))
    assert empty.shape == (0, 3)


def test_the_anchor_never_changes() -> None:
    theta0 = {"w": jnp.arange(4.0)}
    tx = mx.chain(optax.adam(0.1), mx.spd(1.0))
    params, state = theta0, tx.init(theta0)
    for grad in (1.0, np.nan, np.inf, -1.0):
        updates, state = tx.update({"w": jnp.full(4, grad)}, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(state[1].anchor["w"], np.arange(4.0))


def test_max_pull_never_carries_past_the_anchor() -> None:
    past, _ = one_step([1.0], [0.0], [9.0], [1.0], strength=3.0)
    capped, state = one_step([1.0], [0.0], [9.0], [1.0], strength=3.0, max_pull=1.0)
    assert past[0] < 0 and capped[0] == 0.0 and state.pull[0] == 1.0


def test_mars_takes_each_row_by_itself() -> None:
    theta0, theta = np.zeros((2, 2), np.float32), np.float32([[1, 1], [1, 1]])
    update = np.float32([[1, 1], [-0.5, -0.5]])
    result, _ = one_step(theta, theta0, update, np.ones((2, 2)), norm="mars")
    np.testing.assert_allclose(result, [[1, 1], [0.5, 0.5]], rtol=1e-6)


def test_the_floor_of_mars_is_the_released_codes() -> None:
    result, state = one_step([[1e-8]], [[0.0]], [[1e-8]], [[1.0]], norm="mars")
    assert float(state.pull[0]) == pytest.approx(1 / 3, rel=1e-5)  # (2 − 1) / (2 + 1) in units of 1e-8
    assert float(result[0, 0]) == pytest.approx(4e-8 / 3, rel=1e-5)


def test_every_form_of_strength_says_the_same() -> None:
    rng = np.random.default_rng(5)
    theta0, theta, updates, grads = (
        {"a": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32), "b": jnp.asarray(rng.normal(size=2), jnp.float32)}
        for _ in range(4)
    )
    grads, updates = (  # both along the displacement, so that every leaf is pulled
        jax.tree_util.tree_map(lambda x, y, z: 0.1 * z + x - y, theta, theta0, tree) for tree in (grads, updates)
    )
    forms = [0.7, np.float32(0.7), jnp.asarray(0.7), {"a": 0.7, "b": 0.7}, lambda params: {"a": 0.7, "b": 0.7}]
    forms += [lambda params: 0.7, {"a": jnp.asarray(0.7), "b": np.asarray(0.7)}]
    results = []
    for form in forms:
        tx = mx.spd(form)
        new, state = tx.update(updates, tx.init(theta0), theta, grad=grads)
        assert state.triggered.tolist() == [1, 1] and (state.pull > 0).all()
        results.append(new)
    for new in results[1:]:
        jax.tree_util.tree_map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), new, results[0])


def test_stacked_layers_are_layers_of_their_own() -> None:
    rng = np.random.default_rng(2)
    theta, theta0, update, grad = (rng.normal(size=(5, 3, 2)).astype(np.float32) for _ in range(4))
    strengths = np.linspace(0.3, 2.0, 5)
    whole, state = one_step(theta, theta0, update, grad, strength=strengths)
    for i, lam in enumerate(strengths):
        alone, state_i = one_step(theta[i], theta0[i], update[i], grad[i], strength=float(lam))
        np.testing.assert_allclose(whole[i], alone, rtol=1e-6)
        np.testing.assert_allclose(state.drift[i], state_i.drift[0], rtol=1e-6)
    assert 0 < float(state.triggered.sum()) < 5


def test_a_scheduled_lambda_max_follows_the_step() -> None:
    params = {"w": jnp.ones(2)}
    tx = mx.maps({"w": 1}, optax.piecewise_constant_schedule(2.0, {2: 0.25}))
    state = tx.init(params)
    seen = []
    for _ in range(4):
        _, state = tx.update(params, state, params, grad=params)
        seen.append(float(state.strength[0]))
    assert seen == [2.0, 2.0, 0.5, 0.5]


# The criterion without the gradient ---------------------------------------------------------------------------------


def fine_tune(tx: Any, steps: int = 120, watch: bool = False) -> tuple[np.ndarray, list[Any]]:
    """Drift of each weight matrix of an MLP, regressed on a new task from noisy batches, and the trigger pairs."""
    rng = np.random.default_rng(3)
    sizes = (8, 32, 32, 32, 1)
    theta0 = {
        f"w{i}": jnp.asarray(rng.normal(size=s) / np.sqrt(s[0]), jnp.float32)
        for i, s in enumerate(zip(sizes, sizes[1:]))
    }
    xs = jnp.asarray(rng.normal(size=(256, 8)), jnp.float32)
    ys = jnp.sin(xs.sum(1)) + 0.3 * xs[:, 0] * xs[:, 1]

    def loss(params: Any, rows: Any) -> Any:
        h = xs[rows]
        for i in range(len(sizes) - 1):
            h = h @ params[f"w{i}"]
            h = jnp.tanh(h) if i < len(sizes) - 2 else h
        return jnp.mean((h[:, 0] - ys[rows]) ** 2)

    exact = mx.spd(1.5)

    @jax.jit
    def step(params: Any, state: Any, rows: Any) -> Any:
        grads = jax.grad(loss)(params, rows)
        updates, new = tx.update(grads, state, params)
        seen = None
        if watch:
            _, beside = exact.update(updates, state[-1], params, grad=grads)
            seen = (new[-1].triggered, beside.triggered)
        return optax.apply_updates(params, updates), new, seen

    params, state, pairs = theta0, tx.init(theta0), []
    for _ in range(steps):
        params, state, seen = step(params, state, jnp.asarray(rng.integers(0, 256, 16)))
        pairs.append(seen)
    return np.array([float(jnp.linalg.norm(params[k] - theta0[k])) for k in sorted(theta0)]), pairs


LR = 1e-2
INNER: dict[str, Callable[[], Any]] = {
    "constant": lambda: optax.adam(LR),
    "warmup-cosine": lambda: optax.adam(optax.warmup_cosine_decay_schedule(0.0, LR, 6, 120, 0.1 * LR)),
    "adamw, clipped": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(LR, weight_decay=1e-2)),
}


@pytest.mark.filterwarnings("ignore:maps_optax estimates")
@pytest.mark.parametrize("inner", INNER)
def test_the_literal_optax_chain_constrains_like_the_exact_criterion(inner: str) -> None:
    adam, _ = fine_tune(INNER[inner]())
    exact, _ = fine_tune(mx.chain(INNER[inner](), mx.spd(1.5)))
    estimated, pairs = fine_tune(optax.chain(INNER[inner](), mx.spd(1.5)), watch=True)
    ours, true = (np.stack(x)[1:] for x in zip(*pairs))
    assert (ours == true).mean() >= 0.9
    assert 0.05 < true.mean() < 0.95
    assert (abs(estimated - exact) < abs(estimated - adam)).all()
    assert (estimated < adam).all()


@pytest.mark.filterwarnings("ignore:maps_optax estimates")
def test_adams_update_in_place_of_the_gradient_is_a_no_op() -> None:
    """Why the estimate exists: nobody shall "simplify" it to the sign of −⟨u, d⟩."""

    def with_update_as_gradient() -> Any:
        adam, spd = optax.adam(LR), mx.spd(1.5)

        def update(grads: Any, state: Any, params: Any) -> Any:
            u, inner = adam.update(grads, state[0], params)
            u, outer = spd.update(u, state[1], params, grad=jax.tree_util.tree_map(jnp.negative, u))
            return u, (inner, outer)

        return optax.GradientTransformation(lambda p: (adam.init(p), spd.init(p)), update)

    adam, _ = fine_tune(optax.adam(LR))
    naive, _ = fine_tune(with_update_as_gradient())
    exact, _ = fine_tune(mx.chain(optax.adam(LR), mx.spd(1.5)))
    np.testing.assert_allclose(naive, adam, rtol=0.05)
    assert (exact < 0.8 * adam).all()


def test_the_estimate_never_triggers_on_its_first_step() -> None:
    rng = np.random.default_rng(4)
    params = {f"w{i}": jnp.asarray(rng.normal(size=(37, 11)), jnp.float32) for i in range(20)}
    tx = optax.chain(optax.adam(0.1), mx.spd(1.0))
    with pytest.warns(UserWarning, match="mx.chain"):
        _, state = tx.update(params, tx.init(params), params)
    assert float(state[1].triggered.sum()) == 0


def test_the_estimate_warns_once_and_names_the_remedy() -> None:
    params = {"w": jnp.ones(2)}
    tx = optax.chain(optax.adam(0.1), mx.spd(1.0))
    state = tx.init(params)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(3):
            _, state = tx.update(params, state, params)
    assert [w.category for w in seen if "mx.chain" in str(w.message)] == [UserWarning]


@pytest.mark.parametrize("compile", [lambda f: f, jax.jit])
def test_the_warning_of_the_estimate_points_at_the_line_of_the_caller(compile: Callable[[Any], Any]) -> None:
    tx = optax.chain(optax.adam(0.1), mx.spd(1.0))
    params = {"w": jnp.ones(2)}
    with pytest.warns(UserWarning, match="estimates the trigger") as seen:
        compile(tx.update)(params, tx.init(params), params)
    assert [w.filename for w in seen] == [__file__]


def test_criterion_gradient_refuses_to_estimate() -> None:
    params = {"w": jnp.ones(2)}
    tx = optax.chain(optax.adam(0.1), mx.spd(1.0, criterion="gradient"))
    with pytest.raises(ValueError, match="use mx.chain, or pass grad="):
        tx.update(params, tx.init(params), params)


def test_grad_as_an_extra_argument_is_the_exact_criterion() -> None:
    params, grads = {"w": jnp.ones(2)}, {"w": jnp.asarray([1.0, -2.0])}
    explicit = optax.chain(optax.adam(0.1), mx.spd(1.0))
    chained = mx.chain(optax.adam(0.1), mx.spd(1.0))
    s = t = explicit.init(params)
    p = q = params
    for sign in (-1, -1, 1, 1):
        g = jax.tree_util.tree_map(lambda x, k=sign: k * x, grads)
        u, s = explicit.update(g, s, p, grad=g)
        v, t = chained.update(g, t, q)
        p, q = optax.apply_updates(p, u), optax.apply_updates(q, v)
    np.testing.assert_array_equal(p["w"], q["w"])
    assert float(t[1].triggered[0]) == 1
