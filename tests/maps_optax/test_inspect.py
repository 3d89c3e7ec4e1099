"""The tables and numbers a person reads."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import maps_optax as mx

STACK = mx.LayerStack(
    {"vision": {r"v/embed$": "first", r"v/blocks/": "stacked"}, "language": {r"l/block_(\d+)/": "block"}},
    free=[r"head$"],
)


def params() -> dict[str, Any]:
    rng = np.random.default_rng(0)

    def leaf(*shape: int) -> Any:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return {
        "v": {"embed": leaf(4), "blocks": {"w": leaf(2, 3), "b": leaf(2, 5)}},
        "l": {"block_0": {"w": leaf(3)}, "block_1": {"w": leaf(3)}},
        "head": leaf(2),
    }


def moved() -> tuple[Any, Any, Any]:
    tx = mx.chain(optax.adam(0.1), mx.maps(STACK, 1.5, "constant"))
    theta, state = params(), tx.init(params())
    for t in range(6):
        grads = jax.tree_util.tree_map(lambda x, t=t: -x if t < 3 else 0.5 * x, theta)
        updates, state = tx.update(grads, state, theta)
        theta = optax.apply_updates(theta, updates)
    return theta, state, tx


def test_metrics_gather_the_layers_of_the_stack() -> None:
    theta, state, _ = moved()
    start, metrics = params(), mx.metrics(state, STACK)
    expected = {
        "vision/0": [theta["v"]["embed"] - start["v"]["embed"]]
        + [theta["v"]["blocks"][k][0] - start["v"]["blocks"][k][0] for k in ("w", "b")],
        "vision/1": [theta["v"]["blocks"][k][1] - start["v"]["blocks"][k][1] for k in ("w", "b")],
        "language/0": [theta["l"]["block_0"]["w"] - start["l"]["block_0"]["w"]],
        "language/1": [theta["l"]["block_1"]["w"] - start["l"]["block_1"]["w"]],
    }
    assert {k.split("/", 1)[1] for k in metrics if "/" in k} == set(expected)
    for layer, parts in expected.items():
        drift = np.sqrt(sum(float((x**2).sum()) for x in parts))
        assert float(metrics[f"drift/{layer}"]) == pytest.approx(drift, rel=1e-5)
    total = np.sqrt(sum(float((x**2).sum()) for parts in expected.values() for x in parts))
    assert float(metrics["drift"]) == pytest.approx(total, rel=1e-5)
    assert float(metrics["triggered"]) == pytest.approx(float(state[1].triggered.mean()))
    assert float(metrics["pull"]) == pytest.approx(float(state[1].pull.mean()))
    assert all(np.ndim(v) == 0 for v in metrics.values())


def test_metrics_under_jit() -> None:
    _, state, tx = moved()
    jitted = jax.jit(lambda s: mx.metrics(s, STACK))(state)
    assert {k: float(v) for k, v in jitted.items()} == pytest.approx(
        {k: float(v) for k, v in mx.metrics(state, STACK).items()}
    )
    with pytest.raises(ValueError, match="pass layers="):
        jax.jit(mx.metrics)(state)
    with pytest.raises(ValueError, match="attach_anchor"):
        mx.metrics(mx.detach_anchor(state))


def test_metrics_of_a_vmapped_state() -> None:
    """Seeds come first in every vector of the state, and stay apart in the metrics."""
    tx = mx.chain(optax.sgd(0.1), mx.spd({"a": np.array([1.0, 2.0]), "b": 1.0}))
    seeds = jnp.asarray([1.0, 2.0, 3.0, 4.0])  # more than there are layers
    params = jax.vmap(lambda s: {"a": jnp.ones((2, 3)), "b": s * jnp.ones(1)})(seeds)
    state = jax.vmap(tx.init)(params)
    _, state = jax.vmap(tx.update)(params, state, params)
    metrics = mx.metrics(state)
    np.testing.assert_allclose(metrics["drift/b"], 0.1 * seeds, rtol=1e-6)
    np.testing.assert_allclose(metrics["drift/a[1]"], [0.1 * 3**0.5] * 4, rtol=1e-6)
    np.testing.assert_allclose(metrics["drift"], 0.1 * np.sqrt(6 + np.asarray(seeds) ** 2), rtol=1e-6)
    assert metrics["triggered"].shape == metrics["pull"].shape == (4,)


def test_metrics_without_a_stack_go_by_path() -> None:
    _, state, _ = moved()
    names = {k.split("/", 1)[1] for k in mx.metrics(state) if k.startswith("drift/")}
    blocks = {f"v/blocks/{k}[{i}]" for k in "wb" for i in (0, 1)}
    assert names == {"v/embed", "l/block_0/w", "l/block_1/w", *blocks}


def test_describe_counts_everything_once() -> None:
    shapes = jax.eval_shape(params)
    table = mx.describe(STACK, shapes, 2.0)
    rows = [line.split() for line in table.splitlines()]
    assert rows[0] == ["module", "layer", "tensors", "parameters", "λ"]
    assert rows[1:6] == [
        ["vision", "0", "3", "12", "2.0000"],
        ["vision", "1", "2", "8", "1.3333"],
        ["language", "0", "1", "3", "0.6667"],
        ["language", "1", "1", "3", "0.0000"],
        ["free", "1", "2", "0.0000"],
    ]
    # λ = 0 in the last layer frees its leaf; a stacked leaf is kept whole.
    assert table.splitlines()[-1] == "anchored: 23 parameters in 4 of 6 leaves, 92 B of θ0; free: 5 parameters"
    with pytest.raises(ValueError, match="lambda_max is -1.0"):
        mx.describe(STACK, shapes, -1.0)


def test_slices_cover_the_tree() -> None:
    slices = mx.slices(STACK, params())
    assert sum(s.size for s in slices) == sum(x.size for x in jax.tree_util.tree_leaves(params()))
    assert {(s.path, s.row, s.position) for s in slices if s.module == "vision"} == {
        ("v/embed", None, 1),
        ("v/blocks/w", 0, 1),
        ("v/blocks/w", 1, 2),
        ("v/blocks/b", 0, 1),
        ("v/blocks/b", 1, 2),
    }
