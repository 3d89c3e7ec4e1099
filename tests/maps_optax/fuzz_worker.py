"""Run by `test_fuzz.py` in a process of its own, since the number of devices is fixed at start-up.

Fuzzed trees on 8 host devices: every leaf that can be is split, and stays split. Prints, as JSON, how many trees.
"""

import json
import os
import sys
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from jax.sharding import Mesh, NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402

import maps_optax as mx  # noqa: E402
from tests.maps_optax import trees  # noqa: E402
from tests.maps_optax.transforms import jitted  # noqa: E402

SHAPES = [(16, 3), (8,), (3, 8), (5,), (), (0,), (8, 0), (2, 3, 16)]
MESH = Mesh(np.array(jax.devices()), ("x",))


def sharding(shape: tuple[int, ...]) -> NamedSharding:
    """Split along the first axis that 8 devices divide; XLA replicates what has no elements."""
    split = next((i for i, n in enumerate(shape) if n % 8 == 0 and 0 not in shape), None)
    return NamedSharding(MESH, P() if split is None else P(*(None,) * split, "x"))


def place(tree: Any) -> Any:
    return jax.tree_util.tree_map(lambda x: jax.device_put(x, sharding(x.shape)), tree)


def strengths(params: Any) -> Any:
    """λ = 1.5; of every leaf of rank 2, one for each slice."""
    return jax.tree_util.tree_map(lambda x: np.linspace(2, 0.5, x.shape[0]) if x.ndim == 2 else 1.5, params)


TRANSFORMS = [
    lambda: mx.spd(strengths),
    lambda: mx.spd(strengths, norm="mars"),
    lambda: mx.maps(lambda params: jax.tree_util.tree_map(lambda _: 1, params), 2.0, max_pull=0.5),
    lambda: mx.l2_sp(strengths),
]


def assert_placed(tree: Any) -> None:
    for x in jax.tree_util.tree_leaves(tree):
        assert x.sharding.is_equivalent_to(sharding(x.shape), x.ndim), (x.shape, x.sharding)


def assert_close(split: Any, whole: Any) -> None:
    """To within a unit in the last place of bfloat16, which float32 sums in another order may cost."""
    assert jax.tree_util.tree_structure(split) == jax.tree_util.tree_structure(whole)
    for a, b in zip(*map(jax.tree_util.tree_leaves, (split, whole))):
        assert a.dtype == b.dtype
        rtol = 1e-5 if a.dtype == np.float32 else 2**-7
        np.testing.assert_allclose(np.asarray(a, np.float64), np.asarray(b, np.float64), rtol=rtol, atol=1e-5)


def goes_through(tx: optax.GradientTransformationExtraArgs, tree: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    theta0, moved = trees.fill(tree, rng), trees.fill(tree, rng)
    theta = trees.plus(theta0, moved)
    updates = trees.plus(trees.fill(tree, rng, 0.1), moved, 0.3)

    def step(theta0: Any, theta: Any, updates: Any) -> Any:
        return tx.update(updates, tx.init(theta0), theta, grad=updates)

    placed = place((theta0, theta, updates))
    assert_placed(tx.init(placed[0]).anchor)
    split, whole = jitted(step)(*placed), jitted(step)(theta0, theta, updates)
    assert_placed(split[0])
    assert_placed(split[1].anchor)
    assert trees.is_finite(split)
    assert_close(split, whole)


def main(count: int) -> int:
    """`count` trees through the transformations in turn."""
    done = 0

    def check(tree: Any, seed: int) -> None:
        nonlocal done
        goes_through(TRANSFORMS[done % len(TRANSFORMS)](), tree, seed)
        done += 1

    configured = settings(deadline=None, derandomize=True, database=None, max_examples=count)
    configured(given(trees.trees(SHAPES, least=1), st.integers(0, 2**32 - 1))(check))()
    return done


if __name__ == "__main__":
    print(json.dumps({"trees": main(int(sys.argv[1]))}))
