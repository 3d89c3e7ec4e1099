"""What holds for every tree and every step (hypothesis)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import maps_optax as mx

settings.register_profile("ours", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("ours")

SHAPES = st.lists(st.integers(0, 4), min_size=0, max_size=3).map(tuple)
TREES = st.recursive(
    SHAPES.map(lambda shape: np.zeros(shape, np.float32)),
    lambda node: st.one_of(
        st.dictionaries(st.sampled_from("abcd"), node, max_size=3),
        st.lists(node, max_size=3),
        st.tuples(node, node),
    ),
    max_leaves=6,
)
SEEDS = st.integers(0, 2**32 - 1)


def like(tree: Any, rng: np.random.Generator) -> Any:
    return jax.tree_util.tree_map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), tree)


def step(tx: Any, theta0: Any, theta: Any, updates: Any, grads: Any) -> tuple[Any, mx.SPDState]:
    return tx.update(updates, tx.init(theta0), theta, grad=grads)


def norm(x: Any) -> float:
    return float(np.linalg.norm(np.asarray(x, np.float64)))


@given(TREES, SEEDS)
def test_any_tree_lands_on_the_sphere_or_is_left_alone(tree: Any, seed: int) -> None:
    """λ = 1: radius γ_{t−1} where triggered and moving away; the update untouched where c >= 0."""
    rng = np.random.default_rng(seed)
    theta0, theta, updates, grads = (like(tree, rng) for _ in range(4))
    new, _ = step(mx.spd(1.0), theta0, theta, updates, grads)
    assert jax.tree_util.tree_structure(new) == jax.tree_util.tree_structure(updates)
    for start, before, u, v, g in zip(*map(jax.tree_util.tree_leaves, (theta0, theta, updates, new, grads))):
        d = np.asarray(before, np.float64) - np.asarray(start, np.float64)
        asks_back = float((np.asarray(g, np.float64) * d).sum())
        away = norm(d + np.asarray(u, np.float64)) > norm(d)
        if asks_back <= 0 or not away:
            np.testing.assert_array_equal(u, v)
        else:
            after = norm(d + np.asarray(v, np.float64))
            np.testing.assert_allclose(after, norm(d), rtol=2e-5)


@given(SEEDS, st.permutations(range(5)))
def test_the_order_of_leaves_does_not_matter(seed: int, order: list[int]) -> None:
    rng = np.random.default_rng(seed)
    tree = [np.zeros(s) for s in ((3, 2), (4,), (), (2, 2, 2), (5, 1))]
    trees = [like(tree, rng) for _ in range(4)]
    strengths = [np.linspace(0.5, 2, 3), 1.0, 0.3, None, 2.0]
    new, _ = step(mx.spd(strengths), *trees)
    moved, _ = step(mx.spd([strengths[i] for i in order]), *([t[i] for i in order] for t in trees))
    for i, leaf in zip(order, moved):
        np.testing.assert_array_equal(leaf, new[i])


@given(SEEDS, st.floats(0.0, 4.0), st.floats(0.0, 1.0))
def test_a_capped_pull_stays_between_the_step_and_the_anchor(seed: int, strength: float, cap: float) -> None:
    rng = np.random.default_rng(seed)
    theta0, theta, updates, grads = (like(np.zeros(6), rng) for _ in range(4))
    new, _ = step(mx.spd(strength, max_pull=cap), theta0, theta, updates, grads)
    stepped = np.asarray(theta + updates - theta0, np.float64)
    kept = np.asarray(theta + new - theta0, np.float64)
    assert norm(kept) <= norm(stepped) * (1 + 1e-5)
    assert (kept * stepped >= -1e-5).all()


@given(SEEDS, st.floats(0.1, 3.0), st.integers(1, 4))
def test_a_stacked_leaf_is_its_slices(seed: int, strength: float, n: int) -> None:
    rng = np.random.default_rng(seed)
    trees = [like(np.zeros((n, 3)), rng) for _ in range(4)]
    whole, _ = step(mx.spd(np.full(n, strength)), *trees)
    parts, _ = step(mx.spd(strength), *([t[i] for i in range(n)] for t in trees))
    np.testing.assert_allclose(whole, np.stack(parts), rtol=1e-5, atol=1e-6)
