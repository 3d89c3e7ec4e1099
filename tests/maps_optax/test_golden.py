"""The released implementations' trajectories, replayed one step at a time."""

import json
from collections.abc import Iterator
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


@pytest.fixture
def x64() -> Iterator[None]:
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def test_the_golden_trajectories_are_there() -> None:
    if not CASES:
        pytest.skip(f"no golden trajectories: {GOLDEN} is not on this machine")
    assert len(CASES) >= 27


@pytest.mark.parametrize("name", [c for c in CASES if "bf16" not in c])
def test_one_step_at_a_time(name: str, request: pytest.FixtureRequest) -> None:
    case, data = load(name)
    if case["dtype"] == "float64":
        request.getfixturevalue("x64")
    worst, mismatched, triggered = 0.0, 0, 0
    for theta, expected, state, flags in replay(case, data):
        for leaf, value in theta.items():
            worst = max(worst, float(np.abs(np.asarray(value, np.float64) - expected[leaf]).max()))
        mismatched += int((np.asarray(state.triggered) != flags).sum())
        triggered += int(flags.sum())
    assert worst <= TOLERANCE[case["dtype"]]
    assert mismatched == 0
    assert triggered > 0 or name.endswith("lam0")


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
        pull = np.asarray(state.pull, np.float64)
        seen = (pull > 0) & (expected >= 1e-5)
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


def replay(case: dict[str, Any], data: Any) -> Iterator[tuple[Any, Any, mx.SPDState, np.ndarray]]:
    """Per step: our θ_t from the stored θ_{t−1}, the stored θ_t, our state, the stored trigger flags."""
    names = sorted(case["tensors"])
    dtype = jnp.dtype(case["dtype"])
    strength = {
        k: np.array([case["lambda"][f"{k}.{i}"] for i in range(case["tensors"][k]["stacked_layers"])])
        if case["tensors"][k]["stacked_layers"]
        else case["lambda"][k]
        for k in names
    }
    params = {k: jnp.asarray(data[f"theta0/{k}"], dtype) for k in names}
    anchor = None if case["anchor"] == "theta0" else jax.tree_util.tree_map(jnp.zeros_like, params)
    tx = mx.chain(
        optax.adam(case["lr"], b1=case["betas"][0], b2=case["betas"][1], eps=case["eps"]),
        mx.spd(strength, norm=case["norm_type"], anchor=anchor, criterion="gradient"),
    )
    state = tx.init(params)
    step = jax.jit(tx.update)
    kept = [k for k in names if np.any(strength[k])]
    for t in range(case["steps"]):
        grads = {k: jnp.asarray(data[f"grad/{k}"][t], dtype) for k in names}
        updates, state = step(grads, state, params)
        expected = {k: np.asarray(data[f"theta/{k}"][t], np.float64) for k in names}
        flags = [np.atleast_1d(data[f"triggered/{k}"][t]) for k in kept]
        theta = optax.apply_updates(params, updates)
        yield theta, expected, state[1], np.concatenate(flags) if flags else np.zeros(0)
        params = {k: jnp.asarray(data[f"theta/{k}"][t], dtype) for k in names}
