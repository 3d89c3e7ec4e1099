"""Trees such as hardly any model has, for the tests that fuzz: every container, odd keys, odd shapes, mixed dtypes."""

import collections
import dataclasses
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

TORTURE = os.environ.get("TORTURE") == "1"


def examples(few: int, many: int) -> settings:
    """`few` by default, the same ones each time; under TORTURE=1 `many`, new ones each time."""
    return settings(deadline=None, derandomize=not TORTURE, database=None, max_examples=many if TORTURE else few)


class Two(NamedTuple):
    """`value` is the attribute by which an `nnx.State` ends its paths."""

    value: Any
    other: Any


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass
class Keyed:
    """A dataclass as flax and chex register it."""

    kernel: Any
    bias: Any

    def tree_flatten_with_keys(self) -> Any:
        key = jax.tree_util.GetAttrKey
        return ((key("kernel"), self.kernel), (key("bias"), self.bias)), None

    @classmethod
    def tree_unflatten(cls, aux: Any, children: Any) -> "Keyed":
        return cls(*children)


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass
class Keyless:
    """A node whose children JAX can only number."""

    first: Any
    second: Any

    def tree_flatten(self) -> Any:
        return (self.first, self.second), None

    @classmethod
    def tree_unflatten(cls, aux: Any, children: Any) -> "Keyless":
        return cls(*children)


ODD_KEYS = ["a", "b", "a/b", "a.b", "", " ", "/", ".", "..", "ü✓", "0", "value", "x\ny", "block_²", "%2F", "(?:", "λ=1"]
SHAPES = [(3,), (), (2, 3), (1,), (0,), (0, 2), (2, 0), (3, 2, 2), (2, 0, 3)]
FLOATS = ["float32", "bfloat16", "float16"]
SEEDS = st.integers(0, 2**32 - 1)
SCALES = st.sampled_from([1.0, 100.0, 1e-3, 1e-6, 0.0])  # 1e-6 is denormal in float16
WITH_INTEGERS = [*FLOATS, "int32"]


def leaves(shapes: list[tuple[int, ...]], dtypes: list[str]) -> st.SearchStrategy[Any]:
    return st.builds(jax.ShapeDtypeStruct, st.sampled_from(shapes), st.sampled_from(dtypes).map(jnp.dtype))


def containers(node: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    odd = st.dictionaries(st.sampled_from(ODD_KEYS), node, max_size=4)
    mixed = st.dictionaries(st.one_of(st.integers(10, 12), st.sampled_from(ODD_KEYS)), node, max_size=3)
    return st.one_of(
        odd,
        mixed.map(collections.OrderedDict),  # which JAX does not sort, so that 10 and "a" may be neighbours
        st.dictionaries(st.integers(-1, 12), node, max_size=3),
        st.lists(node, max_size=3),
        st.tuples(node, st.none(), node),
        st.builds(Two, node, node),
        st.builds(Keyed, node, node),
        st.builds(Keyless, node, node),
        st.tuples(st.integers(1, 30), node).map(_buried),
    )


def _buried(depth_and_node: tuple[int, Any]) -> Any:
    depth, node = depth_and_node
    for i in range(depth):
        node = [node] if i % 2 else {"deep": node}
    return node


def trees(shapes: list[tuple[int, ...]] = SHAPES, dtypes: list[str] = FLOATS, least: int = 0) -> st.SearchStrategy[Any]:
    """Trees of `jax.ShapeDtypeStruct`s, of `least` leaves or more; not None itself, Optax's word for no parameters."""
    leaf = leaves(shapes, dtypes)
    wide = st.dictionaries(st.sampled_from(ODD_KEYS), leaf, min_size=max(least, 2), max_size=6)
    tree = st.one_of(wide, st.recursive(st.one_of(leaf, st.none()), containers, max_leaves=6))
    return tree.filter(lambda t: t is not None and len(jax.tree_util.tree_leaves(t)) >= least)


@st.composite
def adapters(draw: Callable[..., Any]) -> Any:
    """Trees with pairs of low-rank factors, [in, r] and [r, out] or as PEFT has them, and other leaves."""

    def pair(lead: tuple[int, ...], sizes: tuple[int, int, int], dtypes: tuple[str, str], transposed: bool) -> Any:
        into, rank, out = sizes
        a, b = (*lead, into, rank), (*lead, rank, out)
        if transposed:
            a, b = (*lead, rank, into), (*lead, out, rank)
        return {
            "lora_a": jax.ShapeDtypeStruct(a, jnp.dtype(dtypes[0])),
            "lora_b": jax.ShapeDtypeStruct(b, jnp.dtype(dtypes[1])),
        }

    dtype = st.sampled_from(FLOATS)
    some = st.builds(
        pair,
        st.sampled_from([(), (2,), (2, 3)]),
        st.tuples(st.sampled_from([0, 3, 4]), st.integers(1, 2), st.sampled_from([0, 3, 5])),
        st.tuples(dtype, dtype),
        st.booleans(),
    )
    first, rest = draw(some), draw(containers(st.one_of(some, leaves(SHAPES, FLOATS), st.none())))
    return draw(st.sampled_from([[first, rest], Keyless(rest, first), {"": first, "a/b": rest}]))


def is_float(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jnp.floating))


def fill(tree: Any, rng: np.random.Generator, scale: float = 1.0) -> Any:
    """Arrays in place of the `ShapeDtypeStruct`s; ones where they are no floats."""

    def leaf(x: Any) -> Any:
        values = scale * rng.normal(size=x.shape) if is_float(x) else np.ones(x.shape)
        return jnp.asarray(np.asarray(values, x.dtype))

    return jax.tree_util.tree_map(leaf, tree)


def plus(tree: Any, step: Any, factor: float = 1.0) -> Any:
    """tree + factor · step, in the dtypes of the first; integers as they are."""

    def leaf(x: Any, y: Any) -> Any:
        wide = np.asarray(x, np.float64) + factor * np.asarray(y, np.float64)
        return jnp.asarray(np.asarray(wide, x.dtype)) if is_float(x) else x

    return jax.tree_util.tree_map(leaf, tree, step)


def bits(tree: Any) -> list[tuple[str, tuple[int, ...], bytes]]:
    """What two trees must share to be the same to the last bit."""
    return [(str(x.dtype), tuple(x.shape), np.asarray(x).tobytes()) for x in jax.tree_util.tree_leaves(tree)]


def layout(tree: Any) -> Any:
    """Structure, shapes and dtypes."""
    leaves, treedef = jax.tree_util.tree_flatten(tree)
    return treedef, [(x.shape, x.dtype) for x in leaves]


def is_finite(tree: Any) -> bool:
    return all(np.isfinite(np.asarray(x, np.float64)).all() for x in jax.tree_util.tree_leaves(tree))
