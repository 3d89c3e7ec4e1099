"""Every exported transformation under masks and labels: freezing never moves what is held."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import maps_optax as mx
from tests.maps_optax.matrix import (
    OLD,
    POSITIONS,
    STACK,
    STRENGTH,
    TRANSFORMS,
    adam_and,
    alone,
    bare,
    close,
    distance,
    start,
    train,
    without_lora,
)


def is_spd(node: Any) -> bool:
    return isinstance(node, mx.SPDState)


@pytest.mark.parametrize("whole_subtree", [False, True])
@pytest.mark.parametrize("name", without_lora())
def test_masked(name: str, whole_subtree: bool) -> None:
    """Outside the mask raw gradients pass; inside it, all is as if the rest were not there."""
    mask = {"a": True, "b": False} if whole_subtree else {"a": True, "b": {"c": False, "d": False}}
    params, state = train(optax.masked(TRANSFORMS[name](), mask))
    if "clip" not in name:  # which clips by the norm of what it sees
        close(params["a"], alone(name)["a"])
    assert distance(params) < 0.97 * distance(bare(name))
    member = next(s for s in state.inner_state if isinstance(s, (mx.SPDState, mx.L2SPState)))
    assert len(jax.tree_util.tree_leaves(member.anchor)) == 1


@pytest.mark.skipif(OLD, reason="masked of optax 0.1.5 hands no gradient on")
@pytest.mark.parametrize("member", [lambda: mx.spd(STRENGTH), lambda: mx.maps(POSITIONS, 2.0)])
def test_masked_within_a_chain_gets_the_whole_gradient(member: Callable[[], Any]) -> None:
    params, _ = train(mx.chain(optax.adam(0.1), optax.masked(member(), {"a": True, "b": False})))
    close(params["a"], train(adam_and(member()))[0]["a"])
    close(params["b"], bare("spd tree")["b"])


@pytest.mark.parametrize("name, wrap", [*((name, "multi_transform") for name in without_lora()), ("maps", "partition")])
def test_multi_transform_with_a_frozen_group(name: str, wrap: str) -> None:
    if not hasattr(optax, wrap):
        pytest.skip(f"this optax has no {wrap}")
    labels = {"a": "held", "b": "frozen"}
    params, _ = train(getattr(optax, wrap)({"held": TRANSFORMS[name](), "frozen": optax.set_to_zero()}, labels))
    if "clip" not in name:
        close(params["a"], alone(name)["a"])
    assert distance(params) < 0.97 * distance(bare(name))
    close(params["b"], start()["b"], atol=0)


def test_two_groups_each_with_its_own_anchor() -> None:
    tx = optax.multi_transform(
        {"x": adam_and(mx.spd(STRENGTH)), "y": mx.chain(optax.sgd(0.1), mx.spd(2.0))},
        {"a": "x", "b": "y"},
    )
    params, state = train(tx)
    close(params["a"], alone("spd tree")["a"])
    close(params["b"], train(mx.chain(optax.sgd(0.1), mx.spd(2.0)))[0]["b"])
    assert {"drift/a[0]", "drift/a[2]", "drift/b/c", "drift/b/d"} <= set(mx.metrics(state))
    back = mx.attach_anchor(mx.detach_anchor(state), start())
    close(back, state, atol=0)
    moved = mx.metrics(mx.set_anchor(state, params))
    assert float(moved["drift"]) == 0


def test_a_frozen_module_counts_for_coverage_and_depth() -> None:
    frozen = optax.multi_transform(
        {"held": adam_and(mx.maps(STACK, 2.0)), "frozen": optax.set_to_zero()},
        {"a": "held", "b": {"c": "frozen", "d": "frozen"}},
    )
    state = frozen.init(start())
    anchored = [s for s in jax.tree_util.tree_leaves(state, is_leaf=is_spd) if is_spd(s)]
    whole = adam_and(mx.maps(STACK, 2.0)).init(start())[1]
    np.testing.assert_array_equal(anchored[0].strength, whole.strength)


def test_a_tower_that_is_wholly_masked_out_hides_how_deep_it_is() -> None:
    """Its blocks are counted on axis 0, and the mask leaves no shape: a wrong λ would go unnoticed."""
    stack = mx.LayerStack({"first": {r"a$": "stacked"}, "second": {r"b/": "first"}})
    labels = {"a": "frozen", "b": "held"}
    frozen = optax.multi_transform({"held": adam_and(mx.maps(stack, 2.0)), "frozen": optax.set_to_zero()}, labels)
    with pytest.raises(ValueError, match=r"stacks the blocks of 'first' is masked out .* mx.spd\(mx.strengths"):
        frozen.init(start())
    longer = mx.LayerStack(stack.modules, tail=1)
    remedy = adam_and(mx.spd(mx.strengths(longer, start(), 2.0)))
    _, state = train(optax.multi_transform({"held": remedy, "frozen": optax.set_to_zero()}, labels))
    np.testing.assert_allclose(state.inner_states["held"].inner_state[1].strength, [0.5, 0.5])


def paligemma(count: int = 2) -> dict[str, Any]:
    rows = jnp.ones((count, 3))
    img = {"pos_embedding": jnp.ones(3), "Transformer": {"encoderblock": {"w": rows}}, "head": {"w": jnp.ones(3)}}
    return {"img": img, "llm": {"embedder": {"w": jnp.ones(3)}, "layers": {"w": jnp.ones((4, 3))}}}


def strengths_under(labels: Any, member: Any) -> dict[str, Any]:
    """Path → λ that `member` holds leaves at, where all that is labelled "f" is frozen."""
    tx = optax.multi_transform({"t": adam_and(member), "f": optax.set_to_zero()}, labels)
    state = tx.init(paligemma()).inner_states["t"].inner_state[1]
    return {key.split("/", 1)[1]: float(x) for key, x in mx.metrics(state, strength=True).items() if "strength/" in key}


WHOLE = {"img/pos_embedding": 1.0, "img/Transformer/encoderblock/w[0]": 1.0, "img/Transformer/encoderblock/w[1]": 5 / 6}
WHOLE.update({"img/head/w": 4 / 6, "llm/embedder/w": 0.5, **{f"llm/layers/w[{i}]": (3 - i) / 6 for i in range(4)}})
TOWER = {"pos_embedding": "f", "Transformer": "t", "head": "f"}
LABELS: dict[str, Any] = {
    "none": "t",
    "a leaf": {"img": {"pos_embedding": "f", "Transformer": "t", "head": "t"}, "llm": "t"},
    "modules of one layer": {"img": TOWER, "llm": {"embedder": "f", "layers": "t"}},
    "leaves in a subtree": {"img": {**TOWER, "head": {"w": "f"}}, "llm": {"embedder": {"w": "f"}, "layers": "t"}},
}


@pytest.mark.parametrize("labels", LABELS)
def test_labels_of_subtrees_never_move_lambda(labels: str) -> None:
    found = strengths_under(LABELS[labels], mx.maps(mx.presets.paligemma(), 1.0))
    assert found == pytest.approx({key: WHOLE[key] for key in found}) and len(found) > 5


@pytest.mark.parametrize("labels", [{"img": "f", "llm": "t"}, {"img": {**TOWER, "Transformer": "f"}, "llm": "t"}])
def test_a_module_under_one_label_hides_how_deep_it_is(labels: Any) -> None:
    """llm would get 1, 1, 2/3, 1/3, 0 for .5, .5, 1/3, 1/6, 0."""
    layers = mx.presets.paligemma()
    with pytest.raises(ValueError, match=r"'img.*' is masked out here, .* use mx.spd\(mx.strengths\(") as error:
        strengths_under(labels, mx.maps(layers, 1.0))
    assert "\n" not in str(error.value)
    found = strengths_under(labels, mx.spd(mx.strengths(layers, paligemma(), 1.0)))
    assert found == pytest.approx({key: WHOLE[key] for key in found}) and {k[:3] for k in found} == {"llm"}


def test_patterns_of_what_is_masked_out_whole_are_not_idle() -> None:
    stack = mx.LayerStack(
        {"vision": {r"v/norm/scale": "last", r"v/": "first"}, "language": {r"l/": "first"}},
        free=[r"head/", r"head/mlp/"],
        tail=1,
    )
    one = jnp.ones(2)
    params = {"v": {"norm": {"scale": one}, "w": one}, "l": one, "head": {"mlp": {"w": one}}}
    part = {"v": optax.MaskedNode(), "l": {"w": one}, "head": optax.MaskedNode()}
    assert mx.strengths(stack, part, 1.0)["l"]["w"] == 0.5
    held = optax.masked(adam_and(mx.maps(stack, 1.0)), {"v": False, "l": True, "head": False})
    assert "drift/language" in mx.metrics(held.init({**params, "l": {"w": one}}), stack)
    with pytest.raises(ValueError, match="rule 'head/mlp/' of the LayerStack matches no leaf"):
        mx.strengths(stack, {**params, "l": {"w": one}, "head": {"w": one}}, 1.0)
    with pytest.raises(ValueError, match="rule 'v/norm/scale' of the LayerStack matches no leaf"):
        mx.strengths(stack, {"v": {"w": one}, "l": {"w": one}, "head": {"mlp": optax.MaskedNode()}}, 1.0)


@pytest.mark.parametrize("txt", [optax.MaskedNode(), {"kernel": optax.MaskedNode()}])
def test_what_no_rule_names_may_be_masked_out_where_every_module_is_seen(txt: Any) -> None:
    """A frozen tower beside the stack, as big_vision's factory hides it."""
    stack = mx.LayerStack({"vision": {r"img/(\d+)/": "block"}, "language": {r"llm/": "first"}}, optional=[r"llm/"])
    img, llm = [{"w": jnp.ones(2)}] * 2, {"w": jnp.ones(2)}
    assert mx.strengths(stack, {"img": img, "llm": llm, "txt": txt}, 1.0)["img"] == [{"w": 1.0}, {"w": 0.5}]
    with pytest.raises(
        ValueError, match=r"'txt.*' is masked out here, and no rule .* \(name it in free= if .* mx.spd\("
    ):
        mx.strengths(stack, {"img": img, "txt": txt}, 1.0)
    leaf = {"img": img, "txt": {"w": optax.MaskedNode()}}  # as leaves are called here
    assert mx.strengths(stack, leaf, 1.0)["img"] == [{"w": 1.0}, {"w": 0.0}]
    named = dataclasses.replace(stack, free=[r"^txt/"])
    assert mx.strengths(named, {"img": img, "txt": txt}, 1.0)["img"] == [{"w": 1.0}, {"w": 0.0}]


@pytest.mark.parametrize("form", ["tree", "callable"])
@pytest.mark.parametrize("labels", [{"a": "t", "b": "f"}, {"a": "t", "b": {"c": "f", "d": "f"}}])
def test_given_positions_count_where_they_are_masked_out(form: str, labels: Any) -> None:
    """The last layer is frozen: the stack still has five."""
    given = {"a": np.array([1, 2, 3]), "b": {"c": 5, "d": None}}
    member = mx.maps(given if form == "tree" else lambda params: given, 1.0)
    tx = optax.multi_transform({"t": adam_and(member), "f": optax.set_to_zero()}, labels)
    np.testing.assert_allclose(tx.init(start()).inner_states["t"].inner_state[1].strength, [1.0, 0.75, 0.5])


def test_positions_made_of_what_a_mask_leaves_do_not_tell_the_depth() -> None:
    made = mx.maps(lambda params: jax.tree_util.tree_map(lambda x: 1 + (x.ndim == 1), params), 1.0)
    tx = optax.masked(adam_and(made), {"a": True, "b": False})
    with pytest.raises(ValueError, match=r"'b' is masked out here, and layers \(the positions\) say nothing of it"):
        tx.init(start())


@pytest.mark.parametrize("name", [name for name in TRANSFORMS if "lora" in name])
@pytest.mark.parametrize("wrap", ["masked", "multi_transform"])
def test_adapters_under_a_mask(name: str, wrap: str) -> None:
    mask = {"a": True, "b": {"c": True, "d": False}}
    labels = jax.tree_util.tree_map(lambda held: "held" if held else "frozen", mask)
    tx = (
        optax.masked(TRANSFORMS[name](), mask)
        if wrap == "masked"
        else optax.multi_transform({"held": TRANSFORMS[name](), "frozen": optax.set_to_zero()}, labels)
    )
    params, state = train(tx, start(name))
    close((params["a"], params["b"]["c"]), (alone(name)["a"], alone(name)["b"]["c"]))
    assert float(mx.metrics(state)["drift/b/c"]) > 0
    with pytest.raises(ValueError, match="leaf 'a' has no partner 'b/c'"):
        optax.masked(TRANSFORMS[name](), {"a": True, "b": False}).init(start(name))
