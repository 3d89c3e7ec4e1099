"""One matrix: every exported transformation within Optax's wrappers, containers and program transformations."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import maps_optax as mx

OLD = not hasattr(optax, "tree_utils")  # optax 0.1.5, whose wrappers take no extra arguments
POSITIONS = {"a": np.array([1, 2, 3]), "b": {"c": 2, "d": None}}
STACK = mx.LayerStack({"first": {r"a$": "stacked"}, "second": {r"b/c$": "first"}}, free=[r"b/d$"])
PAIRS = {r"^a$": "b/c"}
STRENGTH = {"a": np.array([1.5, 1.0, 0.5]), "b": {"c": 1.0, "d": None}}


def adam_and(member: Any) -> Any:
    return mx.chain(optax.adam(0.1), member)


TRANSFORMS: dict[str, Callable[[], Any]] = {
    "spd number": lambda: adam_and(mx.spd(1.0)),
    "spd tree": lambda: adam_and(mx.spd(STRENGTH)),
    "spd callable": lambda: adam_and(mx.spd(lambda params: STRENGTH)),
    "spd mars": lambda: adam_and(mx.spd(STRENGTH, norm="mars")),
    "spd bf16 anchor": lambda: adam_and(mx.spd(STRENGTH, anchor_dtype=jnp.bfloat16)),
    "maps": lambda: adam_and(mx.maps(POSITIONS, 2.0)),
    "maps scheduled": lambda: adam_and(mx.maps(POSITIONS, optax.linear_schedule(2.0, 1.0, 4))),
    "spd hypergradient": lambda: adam_and(mx.spd(STRENGTH, adapt=mx.hypergradient(0.5))),
    "maps drift budget": lambda: adam_and(mx.maps(POSITIONS, 1.0, adapt=mx.drift_budget(0.05, 0.5))),
    "lora product": lambda: adam_and(mx.lora_spd(1.5, pairs=PAIRS)),
    "lora init": lambda: adam_and(mx.lora_spd(1.5, pairs=PAIRS, treatment="init")),
    "lora zero": lambda: adam_and(mx.lora_spd(1.5, pairs=PAIRS, treatment="zero")),
    "l2_sp": lambda: mx.chain(mx.l2_sp(STRENGTH), optax.adam(0.1)),
    "clip, adamw, spd": lambda: mx.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(0.1, weight_decay=0.1), mx.spd(STRENGTH)
    ),
    "lion": lambda: mx.chain(optax.lion(0.1, b2=0.9), mx.spd(STRENGTH)),
    "sgd": lambda: mx.chain(optax.sgd(0.1, momentum=0.9), mx.spd(STRENGTH)),
}
BARE = {
    "clip, adamw, spd": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1, weight_decay=0.1)),
    "lion": lambda: optax.lion(0.1, b2=0.9),
    "sgd": lambda: optax.sgd(0.1, momentum=0.9),
}


def start(name: str = "") -> dict[str, Any]:
    """Two leaves that are held and one that is free; for "lora" the two are A and B."""
    rng = np.random.default_rng(0)
    second = (4, 5) if "lora" in name else 5
    return {
        "a": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32),
        "b": {"c": jnp.asarray(rng.normal(size=second), jnp.float32), "d": jnp.asarray(0.7, jnp.float32)},
    }


def gradient(params: Any, t: int) -> Any:
    """Away from the start for some steps, then back, so that it triggers."""
    sign = -1.0 if t < 4 else 0.3
    return jax.tree_util.tree_map(lambda x: sign * x + 0.01 * (t + 1), params)


def train(tx: Any, params: Any = None, steps: int = 8, per_step: int = 1) -> tuple[Any, Any]:
    params = start() if params is None else params
    state = tx.init(params)
    step = jax.jit(tx.update)
    for t in range(steps):
        for _ in range(per_step):
            updates, state = step(gradient(params, t), state, params)
            params = optax.apply_updates(params, updates)
    return params, state


@functools.cache
def alone(name: str) -> Any:
    """Where a transformation of the matrix ends without a wrapper."""
    return train(TRANSFORMS[name](), start(name))[0]


@functools.cache
def bare(name: str) -> Any:
    """Where the optimizer inside a transformation of the matrix ends without it."""
    return train(BARE.get(name, lambda: optax.adam(0.1))(), start(name))[0]


def distance(params: Any, name: str = "") -> float:
    if name == "lora product":
        return float(jnp.linalg.norm(params["a"] @ params["b"]["c"]))
    return float(jnp.linalg.norm(params["a"] - (0 if name == "lora zero" else start()["a"])))


def without_lora() -> list[str]:
    """The rows that one leaf alone is enough for."""
    return [name for name in TRANSFORMS if "lora" not in name]


def close(a: Any, b: Any, atol: float = 1e-6) -> None:
    def check(x: Any, y: Any) -> None:
        np.testing.assert_allclose(np.asarray(x, np.float32), np.asarray(y, np.float32), rtol=0, atol=atol)

    jax.tree_util.tree_map(check, a, b)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_holds_the_weights_and_frees_what_is_free(name: str) -> None:
    held, free = alone(name), bare(name)
    assert distance(held, name) < 0.97 * distance(free, name)
    if name not in ("spd number", "clip, adamw, spd"):  # one clips by the norm of all, the other frees nothing
        np.testing.assert_array_equal(held["b"]["d"], free["b"]["d"])


@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_state_keeps_its_structure_and_the_step_is_traced_once(name: str) -> None:
    tx, params, traces = TRANSFORMS[name](), start(name), 0

    def step(grads: Any, state: Any, params: Any) -> Any:
        nonlocal traces
        traces += 1
        return tx.update(grads, state, params)

    jitted, state = jax.jit(step), tx.init(params)
    first = jax.tree_util.tree_map(lambda x: (x.shape, x.dtype), state)
    for t in range(3):
        updates, state = jitted(gradient(params, t), state, params)
        params = optax.apply_updates(params, updates)
    assert jax.tree_util.tree_map(lambda x: (x.shape, x.dtype), state) == first
    assert traces == 1  # a weak type or another dtype would trace again


@pytest.mark.parametrize("name", TRANSFORMS)
def test_carried_by_scan(name: str) -> None:
    tx = TRANSFORMS[name]()

    def step(carry: Any, t: Any) -> Any:
        params, state = carry
        sign = jnp.where(t < 4, -1.0, 0.3)
        grads = jax.tree_util.tree_map(lambda x: sign * x + 0.01 * (t + 1), params)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (start(name), tx.init(start(name))), jnp.arange(8))
    close(params, alone(name), atol=1e-5)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_eager_jitted_and_abstract_init_agree(name: str) -> None:
    tx, params = TRANSFORMS[name](), start(name)
    eager, jitted, abstract = tx.init(params), jax.jit(tx.init)(params), jax.eval_shape(tx.init, params)
    close(eager, jitted, atol=0)
    jax.tree_util.tree_map(lambda x, y: None if (x.shape, x.dtype) == (y.shape, y.dtype) else 1 / 0, eager, abstract)


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("jitted", [False, True])
def test_a_donated_train_state(name: str, jitted: bool) -> None:
    tx = TRANSFORMS[name]()
    params = jax.tree_util.tree_map(jnp.array, start(name))
    state = (jax.jit(tx.init) if jitted else tx.init)(params)
    # A step that uses every leaf, as MultiSteps' does: `jit` drops, and does not donate, what tx.update never reads.
    everything = jax.jit(lambda tree: jax.tree_util.tree_map(lambda x: x + 0, tree), donate_argnums=0)
    params, state = everything((params, state))

    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    donating = jax.jit(step, donate_argnums=(0, 1))
    for t in range(8):
        params, state = donating(params, state, gradient(params, t))
    close(params, alone(name))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_multi_steps_around_it_sees_the_accumulated_gradient(name: str) -> None:
    twice = optax.MultiSteps(TRANSFORMS[name](), 2)
    params = start(name)
    state = twice.init(params)
    step = jax.jit(twice.update)
    for t in range(8):
        grads = gradient(params, t)
        for noise in (0.5, -0.5):  # the mean of the two is the gradient
            micro = jax.tree_util.tree_map(lambda g, noise=noise: g + noise, grads)
            updates, state = step(micro, state, params)
            params = optax.apply_updates(params, updates)
    close(params, alone(name), atol=1e-4 if "mars" not in name else 1e-3)


@pytest.mark.filterwarnings("ignore:maps_optax estimates")
def test_multi_steps_around_the_literal_chain_estimates_from_the_accumulated_step() -> None:
    literal = optax.chain(optax.adam(0.1), mx.spd(STRENGTH))
    once, state = train(literal)
    twice, doubled = train(optax.MultiSteps(literal, 2), per_step=2)
    assert float(state[1].triggered.max()) == 1
    np.testing.assert_array_equal(doubled.inner_opt_state[1].count, state[1].count)
    close(twice, once)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_apply_if_finite(name: str) -> None:
    wrapped = optax.apply_if_finite(TRANSFORMS[name](), 5)
    close(train(wrapped, start(name))[0], alone(name))
    params, state = start(name), wrapped.init(start(name))
    updates, after = wrapped.update(jax.tree_util.tree_map(lambda x: x * jnp.nan, params), state, params)
    close(updates, jax.tree_util.tree_map(jnp.zeros_like, updates), atol=0)
    close(after.inner_state, state.inner_state, atol=0)


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


def is_spd(node: Any) -> bool:
    return isinstance(node, mx.SPDState)


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


def test_what_adapt_has_learnt_survives_a_checkpoint_and_a_new_anchor() -> None:
    for name in ("spd hypergradient", "maps drift budget"):
        tx, (params, state) = TRANSFORMS[name](), train(TRANSFORMS[name]())
        start_of, learnt = tx.init(start())[1].strength, state[1].strength
        assert float(jnp.abs(learnt - start_of).max()) > 0.1
        plain = jax.tree_util.tree_map(np.asarray, mx.detach_anchor(state))  # what a file holds
        back = mx.attach_anchor(jax.tree_util.tree_map(jnp.asarray, plain), start())
        close(back, state, atol=0)
        once, again = (jax.jit(tx.update)(gradient(params, 8), s, params) for s in (state, back))
        close(once, again, atol=0)
        np.testing.assert_array_equal(mx.set_anchor(state, params)[1].strength, learnt)


INJECTED: dict[str, tuple[str, Callable[[], Any]]] = {
    "a number": ("maps", lambda: optax.inject_hyperparams(mx.maps)(POSITIONS, lambda_max=2.0)),
    "a schedule": (
        "maps scheduled",
        lambda: optax.inject_hyperparams(mx.maps)(POSITIONS, lambda_max=optax.linear_schedule(2.0, 1.0, 4)),
    ),
    "a number, adapted": (
        "maps drift budget",
        lambda: optax.inject_hyperparams(mx.maps, static_args=("adapt",))(
            POSITIONS, lambda_max=1.0, adapt=mx.drift_budget(0.05, 0.5)
        ),
    ),
    "strength": ("spd number", lambda: optax.inject_hyperparams(mx.spd)(1.0)),
    "max_pull": ("spd tree", lambda: optax.inject_hyperparams(mx.spd)(STRENGTH, max_pull=9.0)),
    "callable positions": (
        "maps",
        lambda: optax.inject_hyperparams(mx.maps, static_args=("layers",))(lambda params: POSITIONS, lambda_max=2.0),
    ),
}


@pytest.mark.skipif(OLD, reason="inject_hyperparams of optax 0.1.5 hands no gradient on")
@pytest.mark.parametrize("what", INJECTED)
def test_inject_hyperparams(what: str) -> None:
    name, member = INJECTED[what]
    params, state = train(mx.chain(optax.adam(0.1), member()))
    close(params, alone(name))
    if what == "a number":
        assert float(state[1].hyperparams["lambda_max"]) == 2.0


def test_inject_hyperparams_around_the_chain() -> None:
    def make(lambda_max: Any) -> Any:
        return adam_and(mx.maps(STACK, lambda_max))

    around, state = train(optax.inject_hyperparams(make)(lambda_max=2.0))
    inside, _ = train(make(2.0))
    close(around, inside)
    assert distance(around) < 0.97 * distance(bare("maps"))
    assert float(state.hyperparams["lambda_max"]) == 2.0


def test_a_hyperparameter_of_zero_can_be_raised_later() -> None:
    tx = optax.inject_hyperparams(lambda strength: adam_and(mx.spd(strength)))(strength=0.0)
    _, never = train(tx)
    assert len(jax.tree_util.tree_leaves(never.inner_state[1].anchor)) == 3
    assert float(jnp.abs(never.inner_state[1].pull).max()) == 0
    raised = tx.init(start())
    raised.hyperparams["strength"] = jnp.asarray(1.0)
    params, step = start(), jax.jit(tx.update)
    for t in range(8):
        updates, raised = step(gradient(params, t), raised, params)
        params = optax.apply_updates(params, updates)
    close(params, alone("spd number"))


@pytest.mark.skipif(OLD, reason="optax 0.1.5 has no tree_map_params")
@pytest.mark.parametrize("name", TRANSFORMS)
def test_tree_map_params_maps_anchors_and_nothing_else(name: str) -> None:
    tx, params = TRANSFORMS[name](), start(name)
    state = tx.init(params)
    specs = jax.tree_util.tree_map(lambda x: f"spec of rank {x.ndim}", params)
    mapped = optax.tree_utils.tree_map_params(
        tx,
        lambda leaf, spec: leaf if isinstance(leaf, optax.MaskedNode) else (spec, leaf.ndim),
        state,
        specs,
        transform_non_params=lambda _: "other",
        is_leaf=lambda x: isinstance(x, optax.MaskedNode),
    )
    member = next(s for s in mapped if isinstance(s, (mx.SPDState, mx.L2SPState)))
    if name == "lora product":
        assert jax.tree_util.tree_leaves(member.anchor) == []
    else:
        assert member.anchor["a"] == ("spec of rank 2", 2)
        rank = params["b"]["c"].ndim
        assert member.anchor["b"]["c"] == (f"spec of rank {rank}", rank)
    if isinstance(member, mx.SPDState):
        assert set(member._replace(anchor="other")) == {"other"}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_vmap_over_seeds(name: str) -> None:
    tx = TRANSFORMS[name]()
    scales = jnp.asarray([1.0, 1.7])
    params = jax.vmap(lambda s: jax.tree_util.tree_map(lambda x: s * x, start(name)))(scales)
    state = jax.vmap(tx.init)(params)
    step = jax.jit(jax.vmap(tx.update))
    for t in range(8):
        updates, state = step(jax.vmap(lambda p, t=t: gradient(p, t))(params), state, params)
        params = optax.apply_updates(params, updates)
    for i, scale in enumerate(scales):
        one, _ = train(TRANSFORMS[name](), jax.tree_util.tree_map(lambda x, s=scale: s * x, start(name)))
        close(jax.tree_util.tree_map(lambda x, i=i: x[i], params), one, atol=1e-5)


def containers() -> dict[str, Callable[[], tuple[Any, Callable[[Any], list[Any]]]]]:
    """Name → (a tree of leaves 'a' (3, 4) and 'c' (5,) in that container, its leaves in that order)."""
    a, c = start()["a"], start()["b"]["c"]

    def frozen() -> Any:
        core = pytest.importorskip("flax.core")
        return core.FrozenDict({"a": a, "c": c}), lambda t: [t["a"], t["c"]]

    def dataclass() -> Any:
        chex = pytest.importorskip("chex")

        @chex.dataclass
        class Params:
            a: Any
            c: Any

        return Params(a=a, c=c), lambda t: [t.a, t.c]

    def qkv() -> Any:
        struct = pytest.importorskip("flax.struct")

        @struct.dataclass
        class Attention:
            query: Any
            value: Any

        return Attention(query=a, value=c), lambda t: [t.query, t.value]

    def nnx_state() -> Any:
        nnx = pytest.importorskip("flax.nnx")
        return nnx.State({"a": nnx.Param(a), "c": nnx.Param(c)}), jax.tree_util.tree_leaves

    return {
        "dict": lambda: ({"a": a, "c": c}, lambda t: [t["a"], t["c"]]),
        "list": lambda: ([a, c], list),
        "tuple": lambda: ((a, c), list),
        "FrozenDict": frozen,
        "dataclass": dataclass,
        "dataclass of query and value": qkv,
        "nnx.State": nnx_state,
    }


@pytest.mark.parametrize("kind", containers())
@pytest.mark.parametrize("method", ["spd", "maps"])
def test_every_container(kind: str, method: str) -> None:
    params, leaves = containers()[kind]()
    keys = {"list": ("0", "1"), "tuple": ("0", "1"), "dataclass of query and value": ("query", "value")}.get(
        kind, ("a", "c")
    )
    stack = mx.LayerStack({"first": {rf"{keys[0]}$": "stacked"}, "second": {rf"{keys[1]}$": "first"}})
    member = mx.spd(1.0) if method == "spd" else mx.maps(stack, 2.0)
    tx = adam_and(member)
    held, state = train(tx, params)
    assert jax.tree_util.tree_structure(held) == jax.tree_util.tree_structure(params)
    plain, _ = train(optax.adam(0.1), params)
    assert abs(leaves(held)[0] - leaves(params)[0]).sum() < 0.97 * abs(leaves(plain)[0] - leaves(params)[0]).sum()
    expected = set(keys) if method == "spd" else {f"{keys[0]}[{i}]" for i in range(3)}
    assert {m.split("/", 1)[1] for m in mx.metrics(state) if m.startswith("drift/")} == expected
    detached = mx.detach_anchor(state)
    close(mx.attach_anchor(detached, params)[1].anchor, state[1].anchor, atol=0)


@dataclasses.dataclass
class Attention:
    query: Any
    key: Any
    value: Any


@dataclasses.dataclass
class Bias:
    value: Any


for kind in (Attention, Bias):
    fields = [field.name for field in dataclasses.fields(kind)]
    jax.tree_util.register_pytree_with_keys(
        kind,
        lambda node, fields=fields: ([(jax.tree_util.GetAttrKey(f), getattr(node, f)) for f in fields], None),
        lambda _, children, kind=kind: kind(*children),
    )


def test_a_field_that_is_called_value_keeps_its_name() -> None:
    """query, key, value: only a box that flax puts around an array has a key that no user wrote."""
    one = jnp.ones(2)
    params = {"attention": Attention(one, one, one), "bias": Bias(one)}
    assert [s.path for s in mx.slices(lambda p: jax.tree_util.tree_map(lambda _: 1, p), params)] == [
        *(f"attention/{name}" for name in ("query", "key", "value")),
        "bias/value",
    ]
    stack = mx.LayerStack({"first": {r"value$": "first"}, "second": {r"attention/": "first"}})
    lambdas = mx.strengths(stack, params, 1.0)
    assert (lambdas["attention"].value, lambdas["attention"].query, lambdas["bias"].value) == (1.0, 0.0, 1.0)


def test_the_boxes_of_flax_do_not_show_in_paths() -> None:
    nnx, linen = pytest.importorskip("flax.nnx"), pytest.importorskip("flax.linen")

    class Lora(nnx.Variable):
        pass

    class Model(nnx.Module):
        def __init__(self) -> None:
            self.value, self.adapter = nnx.Param(jnp.ones(2)), Lora(jnp.ones(2))
            self.linear = nnx.Linear(2, 2, rngs=nnx.Rngs(0))

    params = {"nnx": nnx.state(Model()), "linen": linen.Partitioned(jnp.ones(2), names=("x",))}
    found = {s.path for s in mx.slices(lambda p: jax.tree_util.tree_map(lambda _: 1, p), params)}
    assert found == {"linen", "nnx/value", "nnx/adapter", "nnx/linear/bias", "nnx/linear/kernel"}


def test_flax_train_state() -> None:
    train_state = pytest.importorskip("flax.training.train_state")
    state = train_state.TrainState.create(apply_fn=None, params=start(), tx=TRANSFORMS["maps"]())
    step = jax.jit(lambda state, grads: state.apply_gradients(grads=grads), donate_argnums=0)
    state = jax.tree_util.tree_map(jnp.array, state)
    for t in range(8):
        state = step(state, gradient(state.params, t))
    close(state.params, alone("maps"))


def test_nnx_optimizer() -> None:
    """It keeps Optax's state in variables of its own, which anchors and metrics must see through."""
    nnx = pytest.importorskip("flax.nnx")

    class Model(nnx.Module):
        def __init__(self) -> None:
            self.a, self.c = nnx.Param(start()["a"]), nnx.Param(start()["b"]["c"])

    model = Model()
    optimizer = nnx.Optimizer(model, adam_and(mx.maps({"a": np.array([1, 2, 3]), "c": 2}, 2.0)), wrt=nnx.Param)
    holder = [model] if "model" in inspect.signature(nnx.Optimizer.update).parameters else []  # since flax 0.11
    for t in range(8):
        optimizer.update(*holder, gradient(nnx.state(model, nnx.Param), t))
    close({"a": model.a[...], "c": model.c[...]}, {"a": alone("maps")["a"], "c": alone("maps")["b"]["c"]}, atol=1e-5)
    assert float(mx.metrics(optimizer.opt_state)["drift/a[0]"]) == pytest.approx(
        float(jnp.linalg.norm(model.a[...][0] - start()["a"][0])), rel=1e-4
    )
