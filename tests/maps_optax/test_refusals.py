"""A tree that cannot be held is refused in one line that names the leaf; what a person reads of the others."""

import collections
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import maps_optax as mx
from tests.maps_optax import trees
from tests.maps_optax.transforms import ADAPTERS, ALL, TRANSFORMS, jitted, numbered, positions
from tests.maps_optax.trees import bits, examples, fill, is_finite, layout


def refused(action: Callable[[], Any], *parts: str) -> None:
    with pytest.raises(ValueError) as error:
        action()
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


UNHOLDABLE: dict[str, Callable[[], Any]] = {
    "int32": lambda: np.ones(2, np.int32),
    "bool": lambda: np.ones(2, bool),
    "complex64": lambda: np.ones(2, np.complex64),
    "float8_e4m3fn": lambda: np.ones(2, jnp.float8_e4m3fn),
    "key<fry>": lambda: jax.random.key(0),
    "float,": lambda: 1.0,
    "str,": lambda: "resnet",
}


@pytest.mark.parametrize("kind", UNHOLDABLE)
def test_a_leaf_that_cannot_be_held_is_named_and_can_be_freed(kind: str) -> None:
    @examples(5, 300)
    @given(st.lists(st.sampled_from(trees.ODD_KEYS), max_size=4))
    def check(keys: list[str]) -> None:
        leaf = params = UNHOLDABLE[kind]()
        held: Any = None  # λ, or k
        for key in reversed(keys):
            params, held = {key: params, "fine": jnp.ones(2)}, {key: held, "fine": 1}
        name = "/".join(keys) if keys else "<the only leaf>"
        for tx in (mx.spd(1.0), mx.l2_sp(1.0), mx.maps(lambda p: numbered(lambda i, _: 1, p), 1.0)):
            refused(lambda tx=tx: tx.init(params), f"leaf {name!r}", kind)
        for free in (mx.spd(lambda _, held=held: held), mx.maps(lambda _, held=held: held, 1.0)):
            new, _ = free.update(params, free.init(params), params, grad=params)
            for key in keys:
                new = new[key]
            assert new is leaf

    check()


TWINS: dict[str, Callable[[], Any]] = {
    "a/b/1": lambda: {"a/b": collections.OrderedDict([(1, jnp.ones(2)), ("1", jnp.zeros(2))])},
    "x/1": lambda: {"x": collections.OrderedDict([(1, None), ("1", jnp.zeros(2))])},
}


@pytest.mark.filterwarnings("ignore:maps_optax estimates")
@pytest.mark.parametrize("path", TWINS)
def test_two_leaves_of_one_path_are_refused_because_nothing_could_tell_them_apart(path: str) -> None:
    for make in (*TRANSFORMS.values(), *ADAPTERS.values()):
        refused(lambda make=make: make().init(TWINS[path]()), f"two leaves {path!r}")
    flat = {"1": jnp.ones(2)}
    pretrained = collections.OrderedDict([(1, jnp.ones(2)), ("1", jnp.zeros(2))])
    refused(lambda: mx.spd(1.0, anchor=pretrained).init(flat), "mx.spd: anchor has two leaves '1'")


def test_leaves_that_only_read_alike_are_kept_apart_except_as_adapters() -> None:
    tx = mx.spd({"a/b": 1.0, "a": {"b": None}})
    params = {"a/b": jnp.ones(2), "a": {"b": jnp.full(3, 2.0)}}
    theta = {"a/b": jnp.full(2, 2.0), "a": {"b": jnp.zeros(3)}}
    new, state = tx.update(theta, tx.init(params), theta, grad=theta)
    np.testing.assert_allclose(new["a/b"], [0.0, 0.0], atol=1e-6)
    np.testing.assert_array_equal(new["a"]["b"], theta["a"]["b"])
    pair = {"lora_a": jnp.ones((3, 1)), "lora_b": jnp.ones((1, 2))}
    both = {"x": pair, **{f"x/{key}": leaf for key, leaf in pair.items()}}
    refused(lambda: mx.lora_spd(1.0).init(both), "two leaves read 'x/lora_a'")


@examples(15, 2000)
@given(trees.trees(dtypes=trees.WITH_INTEGERS))
def test_strengths_and_tables_count_every_parameter_once(tree: Any) -> None:
    sizes = [x.size for x in jax.tree_util.tree_leaves(tree)]
    for layers in (positions, ALL):
        found = mx.slices(layers, tree)
        assert sum(s.size for s in found) == sum(sizes)
        lam = mx.strengths(layers, tree, 2.0, "constant")
        assert jax.tree_util.tree_structure(lam) == jax.tree_util.tree_structure(tree)
    assert {s.position for s in found} <= {1}
    assert f"of {len(sizes)} leaves" in mx.describe(positions, tree, 2.0)


@examples(4, 200)
@given(trees.trees(), trees.SEEDS)
def test_interpolation_ends_at_its_two_ends(tree: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, last = fill(tree, rng), fill(tree, rng)
    ends = jitted(lambda a, b: (mx.interpolate(a, b, 0.0), mx.interpolate(a, b, 1.0), mx.interpolate(a, b, 0.5)))
    start, end, middle = ends(first, last)
    assert bits(start) == bits(first) and bits(end) == bits(last)
    assert is_finite(middle) and layout(middle) == layout(last)


def test_numpys_float64_is_held_as_jax_holds_it_without_a_warning() -> None:
    state = mx.spd(1.0).init({"w": np.ones(3)})
    assert state.anchor["w"].dtype == jnp.asarray(1.0).dtype


def test_a_superscript_is_no_block_number() -> None:
    stack = mx.LayerStack({"vision": {r"block_(.+)": "block"}})
    refused(lambda: mx.slices(stack, {"block_²": np.ones(2)}), "block number '²' from leaf 'block_²'")
