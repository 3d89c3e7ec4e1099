"""The released implementations' trajectories, replayed one step at a time."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import maps_optax as mx

GOLDEN = Path(__file__).parents[3] / "shared/reference/golden"
CASES = sorted(path.stem for path in GOLDEN.glob("*.json"))
TOLERANCE = {"float64": 1e-12, "float32": 1e-6}


def test_the_golden_trajectories_are_there() -> None:
    if not CASES:
        pytest.skip(f"no golden trajectories: {GOLDEN} is not on this machine")
    assert len(CASES) >= 27


@pytest.mark.parametrize("name", [c for c in CASES if "bf16" not in c])
def test_one_step_at_a_time(name: str, request: pytest.FixtureRequest) -> None:
    case, data = load(name)
    if case["dtype"] == "float64":
        request.getfixturevalue("x64")
    theta, expected, triggered, flags = replay(case, data)
    for leaf, values in theta.items():
        error = np.abs(np.asarray(values, np.float64) - expected[leaf])
        assert error.max() <= TOLERANCE[case["dtype"]], (
            f"{leaf} at step {np.unravel_index(error.argmax(), error.shape)[0]}"
        )
    np.testing.assert_array_equal(triggered, flags)
    assert flags.any() or name.endswith("lam0")


def test_bf16_parameters_give_the_float64_ratio() -> None:
    """The released code computes r in bf16; ours must be that of the bf16 tensors in float64."""
    if not CASES:
        pytest.skip(f"no golden trajectories: {GOLDEN} is not on this machine")
    case, data = load("extra_bf16_lam2")
    names, lam = sorted(case["tensors"]), 2.0
    start = {k: jnp.asarray(data[f"theta0/{k}"], jnp.bfloat16) for k in names}
    adam = optax.adam(case["lr"], b1=case["betas"][0], b2=case["betas"][1], eps=case["eps"])
    spd = mx.spd({k: np.full(3, lam) if k == "blocks" else lam for k in names})
    # Two programs, since one would let XLA keep more of Adam's update than its bf16.
    adam_step, spd_step = jax.jit(adam.update), jax.jit(lambda u, s, p, g: spd.update(u, s, p, grad=g))
    adam_state, state, params, compared = adam.init(start), spd.init(start), start, 0
    for t in range(case["steps"]):
        grads = {k: jnp.asarray(data[f"grad/{k}"][t], jnp.bfloat16) for k in names}
        updates, adam_state = adam_step(grads, adam_state)
        _, state = spd_step(updates, state, params, grads)
        expected = np.concatenate([ratios(start[k], params[k], updates[k], k == "blocks") for k in names])
        wanted = np.concatenate([np.atleast_1d(data[f"c/{k}"][t]) for k in names]) < 0  # float64, of these tensors
        np.testing.assert_array_equal(state.triggered, wanted)
        pull = np.asarray(state.pull, np.float64)
        seen = wanted & (expected >= 1e-5)
        np.testing.assert_allclose(pull[seen], lam * expected[seen], rtol=1e-2)
        compared += int(seen.sum())
        params = {k: jnp.asarray(data[f"theta/{k}"][t], jnp.bfloat16) for k in names}
    assert compared > 300


def ratios(start: Any, params: Any, updates: Any, stacked: bool) -> np.ndarray:
    """r of a leaf, or of each slice of it, in float64."""
    theta0, theta, u = (np.asarray(x, np.float64) for x in (start, params, updates))
    rows = (len(theta0), -1) if stacked else (1, -1)
    before = np.linalg.norm((theta - theta0).reshape(rows), axis=1)
    after = np.linalg.norm((theta + u - theta0).reshape(rows), axis=1)
    return np.maximum(after - before, 0) / np.where(after > 0, after, 1)


def load(name: str) -> tuple[dict[str, Any], Any]:
    return json.loads((GOLDEN / f"{name}.json").read_text()), np.load(GOLDEN / f"{name}.npz")


def replay(case: dict[str, Any], data: Any) -> tuple[Any, Any, np.ndarray, np.ndarray]:
    """Of every step: our θ_t from the stored θ_{t−1}, the stored θ_t, our trigger flags, the stored ones."""
    names = sorted(case["tensors"])
    dtype = jnp.dtype(case["dtype"])
    strength = {
        k: np.array([case["lambda"][f"{k}.{i}"] for i in range(case["tensors"][k]["stacked_layers"])])
        if case["tensors"][k]["stacked_layers"]
        else case["lambda"][k]
        for k in names
    }
    theta0 = {k: jnp.asarray(data[f"theta0/{k}"], dtype) for k in names}
    anchor = None if case["anchor"] == "theta0" else jax.tree_util.tree_map(jnp.zeros_like, theta0)
    tx = mx.chain(
        optax.adam(case["lr"], b1=case["betas"][0], b2=case["betas"][1], eps=case["eps"]),
        mx.spd(strength, norm=case["norm_type"], anchor=anchor, criterion="gradient"),
    )
    expected = {k: data[f"theta/{k}"] for k in names}
    before = {k: jnp.concatenate([theta0[k][None], jnp.asarray(expected[k][:-1], dtype)]) for k in names}
    grads = {k: jnp.asarray(data[f"grad/{k}"], dtype) for k in names}

    def step(state: Any, now: Any) -> Any:
        params, grad = now
        updates, state = tx.update(grad, state, params)
        return state, (optax.apply_updates(params, updates), state[1].triggered)

    _, (theta, triggered) = jax.jit(lambda: jax.lax.scan(step, tx.init(theta0), (before, grads)))()
    kept = [np.reshape(data[f"triggered/{k}"], (case["steps"], -1)) for k in names if np.any(strength[k])]
    flags = np.concatenate(kept, axis=1) if kept else np.zeros((case["steps"], 1))  # the entry of no leaf
    return theta, expected, np.asarray(triggered), flags


# Without the released trajectories ------------------------------------------------------------------------------------

LR, B1, B2, EPS = 0.01, 0.9, 0.99, 1e-8


def reference(theta0: np.ndarray, anchor: np.ndarray, grads: np.ndarray, lam: float, norm: str) -> np.ndarray:
    """One tensor's trajectory in float64, by the equations of `official_semantics.md`, section 1, read literally."""
    theta, m, v, out = theta0, np.zeros_like(theta0), np.zeros_like(theta0), []
    for t, g in enumerate(grads, 1):
        m, v = B1 * m + (1 - B1) * g, B2 * v + (1 - B2) * g * g
        moved = theta - LR * (m / (1 - B1**t)) / (np.sqrt(v / (1 - B2**t)) + EPS)
        if -(g * (theta - anchor)).sum() < 0:
            after, before = size(moved - anchor, norm), size(theta - anchor, norm)
            r = np.clip((after - before) / after, 0, 1)
            moved = moved - lam * r * (moved - anchor)
        theta = moved
        out.append(theta)
    return np.stack(out)


def size(x: np.ndarray, norm: str) -> np.ndarray:
    """‖x‖, or per row the L1 norm of "mars"; tensors of rank 0 and 1 are one row."""
    if norm == "l2":
        return np.asarray(np.linalg.norm(x))
    axes = tuple(range(1, x.ndim)) if x.ndim > 1 else None
    return np.abs(x).sum(axis=axes, keepdims=True) + 1e-8


@pytest.mark.parametrize("zero_anchor", [False, True])
@pytest.mark.parametrize("norm", ["l2", "mars"])
def test_sixty_steps_of_the_equations_in_float64(norm: str, zero_anchor: bool, x64: None) -> None:
    rng = np.random.default_rng(7)
    shapes = {"scalar": (), "vector": (5,), "matrix": (4, 3), "conv": (2, 2, 3), "stack": (3, 4, 2), "free": (2, 2)}
    strength = {"scalar": 0.5, "vector": 1.0, "matrix": 3.2, "conv": 2.0, "stack": [2.0, 0.0, 0.7], "free": 0.0}
    strength = {k: np.array(v) for k, v in strength.items()}
    theta0 = {k: rng.normal(size=s) for k, s in shapes.items()}
    anchor = {k: np.zeros(s) if zero_anchor else theta0[k] for k, s in shapes.items()}
    drive = {k: rng.normal(size=s) for k, s in shapes.items()}
    swing = np.sin(np.arange(60) / 4) + 0.3  # away and back, several times
    grads = {k: np.stack([f * drive[k] + 0.3 * rng.normal(size=s) for f in swing]) for k, s in shapes.items()}
    grads["vector"][:5] = 0.0  # no displacement yet
    grads["matrix"][20:23] = 0.0  # displaced, and c = 0

    tx = mx.chain(optax.adam(LR, b1=B1, b2=B2, eps=EPS), mx.spd(strength, norm=norm, anchor=anchor))
    params, got, pulled = jax.tree_util.tree_map(jnp.asarray, theta0), [], 0.0
    state, step = tx.init(params), jax.jit(tx.update)
    for t in range(60):
        updates, state = step({k: jnp.asarray(g[t]) for k, g in grads.items()}, state, params)
        params = optax.apply_updates(params, updates)
        got.append(params)
        pulled += np.asarray(state[1].pull) > 0
    for k in shapes:
        mine = np.stack([np.asarray(p[k]) for p in got])
        if k == "stack":
            parts = [reference(theta0[k][i], anchor[k][i], grads[k][:, i], strength[k][i], norm) for i in range(3)]
            expected = np.stack(parts, axis=1)
        else:
            expected = reference(theta0[k], anchor[k], grads[k], float(strength[k]), norm)
        np.testing.assert_allclose(mine, expected, rtol=0, atol=1e-12, err_msg=k)
    # conv, matrix, scalar, stack[0..2], vector: all that have λ > 0 were pulled back now and then.
    assert (pulled[[0, 1, 2, 3, 5, 6]] > 0).all() and pulled[4] == 0
