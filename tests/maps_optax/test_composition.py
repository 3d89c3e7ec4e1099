"""One matrix: every exported transformation within Optax's wrappers, containers and program transformations."""

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
    "l2_sp": lambda: mx.chain(mx.l2_sp(STRENGTH), optax.adam(0.1)),
    "clip, adamw, spd": lambda: mx.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(0.1, weight_decay=0.0), mx.spd(STRENGTH)
    ),
    "lion": lambda: mx.chain(optax.lion(0.1, b2=0.9), mx.spd(STRENGTH)),
    "sgd": lambda: mx.chain(optax.sgd(0.1, momentum=0.9), mx.spd(STRENGTH)),
}
BARE = {
    "clip, adamw, spd": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1, weight_decay=0.0)),
    "lion": lambda: optax.lion(0.1, b2=0.9),
    "sgd": lambda: optax.sgd(0.1, momentum=0.9),
}


def start() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "a": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32),
        "b": {"c": jnp.asarray(rng.normal(size=5), jnp.float32), "d": jnp.asarray(0.7, jnp.float32)},
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


def distance(params: Any) -> float:
    return float(jnp.linalg.norm(params["a"] - start()["a"]))


def close(a: Any, b: Any, atol: float = 1e-6) -> None:
    def check(x: Any, y: Any) -> None:
        np.testing.assert_allclose(np.asarray(x, np.float32), np.asarray(y, np.float32), rtol=0, atol=atol)

    jax.tree_util.tree_map(check, a, b)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_holds_the_weights_and_frees_what_is_free(name: str) -> None:
    held, _ = train(TRANSFORMS[name]())
    bare, _ = train(BARE.get(name, lambda: optax.adam(0.1))())
    assert distance(held) < 0.97 * distance(bare)
    if name not in ("spd number", "clip, adamw, spd"):  # one clips by the norm of all, the other frees nothing
        np.testing.assert_array_equal(held["b"]["d"], bare["b"]["d"])


@pytest.mark.parametrize("name", TRANSFORMS)
def test_state_keeps_structure_and_dtypes(name: str) -> None:
    tx, params = TRANSFORMS[name](), start()
    state = tx.init(params)
    _, after = tx.update(gradient(params, 0), state, params)
    avals = [jax.tree_util.tree_map(lambda x: (x.shape, x.dtype), s) for s in (state, after)]
    assert avals[0] == avals[1]


@pytest.mark.parametrize("name", TRANSFORMS)
def test_eager_jitted_and_abstract_init_agree(name: str) -> None:
    tx, params = TRANSFORMS[name](), start()
    eager, jitted, abstract = tx.init(params), jax.jit(tx.init)(params), jax.eval_shape(tx.init, params)
    close(eager, jitted, atol=0)
    jax.tree_util.tree_map(lambda x, y: None if (x.shape, x.dtype) == (y.shape, y.dtype) else 1 / 0, eager, abstract)


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("jitted", [False, True])
def test_a_donated_train_state(name: str, jitted: bool) -> None:
    tx = TRANSFORMS[name]()
    params = jax.tree_util.tree_map(jnp.array, start())
    state = (jax.jit(tx.init) if jitted else tx.init)(params)

    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    donating = jax.jit(step, donate_argnums=(0, 1))
    for t in range(8):
        params, state = donating(params, state, gradient(params, t))
    close(params, train(TRANSFORMS[name]())[0])


@pytest.mark.parametrize("name", TRANSFORMS)
def test_multi_steps_around_it_sees_the_accumulated_gradient(name: str) -> None:
    twice = optax.MultiSteps(TRANSFORMS[name](), 2)
    params = start()
    state = twice.init(params)
    step = jax.jit(twice.update)
    for t in range(8):
        grads = gradient(params, t)
        for noise in (0.5, -0.5):  # the mean of the two is the gradient
            micro = jax.tree_util.tree_map(lambda g, noise=noise: g + noise, grads)
            updates, state = step(micro, state, params)
            params = optax.apply_updates(params, updates)
    close(params, train(TRANSFORMS[name]())[0], atol=1e-4 if "mars" not in name else 1e-3)


@pytest.mark.parametrize("name", ["spd number", "maps", "l2_sp"])
def test_apply_if_finite(name: str) -> None:
    wrapped = optax.apply_if_finite(TRANSFORMS[name](), 5)
    close(train(wrapped)[0], train(TRANSFORMS[name]())[0])
    params, state = start(), wrapped.init(start())
    updates, after = wrapped.update(jax.tree_util.tree_map(lambda x: x * jnp.nan, params), state, params)
    close(updates, jax.tree_util.tree_map(jnp.zeros_like, updates), atol=0)
    close(after.inner_state, state.inner_state, atol=0)


@pytest.mark.parametrize("whole_subtree", [False, True])
def test_masked(whole_subtree: bool) -> None:
    mask = {"a": True, "b": False} if whole_subtree else {"a": True, "b": {"c": False, "d": False}}
    inside = optax.masked(adam_and(mx.spd(STRENGTH)), mask)
    params, state = train(inside)
    close(params["a"], train(adam_and(mx.spd(STRENGTH)))[0]["a"])
    assert len(jax.tree_util.tree_leaves(state.inner_state[1].anchor)) == 1


@pytest.mark.skipif(OLD, reason="masked of optax 0.1.5 hands no gradient on")
def test_masked_within_a_chain_gets_the_whole_gradient() -> None:
    params, _ = train(mx.chain(optax.adam(0.1), optax.masked(mx.spd(STRENGTH), {"a": True, "b": False})))
    close(params["a"], train(adam_and(mx.spd(STRENGTH)))[0]["a"])
    close(params["b"], train(optax.adam(0.1))[0]["b"])


def test_multi_transform_with_a_frozen_group() -> None:
    tx = optax.multi_transform(
        {"held": adam_and(mx.spd(STRENGTH)), "frozen": optax.set_to_zero()}, {"a": "held", "b": "frozen"}
    )
    params, _ = train(tx)
    close(params["a"], train(adam_and(mx.spd(STRENGTH)))[0]["a"])
    close(params["b"], start()["b"], atol=0)


def test_a_frozen_module_counts_for_coverage_and_depth() -> None:
    stack = mx.LayerStack({"first": {r"a$": "stacked"}, "second": {r"b/c": "first"}}, free=[r"b/d"])
    frozen = optax.multi_transform(
        {"held": adam_and(mx.maps(stack, 2.0)), "frozen": optax.set_to_zero()},
        {"a": "held", "b": {"c": "frozen", "d": "frozen"}},
    )
    state = frozen.init(start())
    anchored = [s for s in jax.tree_util.tree_leaves(state, is_leaf=is_spd) if is_spd(s)]
    whole = adam_and(mx.maps(stack, 2.0)).init(start())[1]
    np.testing.assert_array_equal(anchored[0].strength, whole.strength)


def is_spd(node: Any) -> bool:
    return isinstance(node, mx.SPDState)


@pytest.mark.skipif(OLD, reason="inject_hyperparams of optax 0.1.5 hands no gradient on")
def test_inject_hyperparams() -> None:
    injected = mx.chain(optax.adam(0.1), optax.inject_hyperparams(mx.maps)(POSITIONS, lambda_max=2.0))
    params, state = train(injected)
    close(params, train(TRANSFORMS["maps"]())[0])
    assert float(state[1].hyperparams["lambda_max"]) == 2.0
    scheduled = optax.linear_schedule(2.0, 1.0, 4)
    injected = mx.chain(optax.adam(0.1), optax.inject_hyperparams(mx.maps)(POSITIONS, lambda_max=scheduled))
    close(train(injected)[0], train(TRANSFORMS["maps scheduled"]())[0])
    injected = mx.chain(optax.adam(0.1), optax.inject_hyperparams(mx.spd)(1.0))
    close(train(injected)[0], train(TRANSFORMS["spd number"]())[0])


def test_a_hyperparameter_of_zero_can_be_raised_later() -> None:
    tx = optax.inject_hyperparams(lambda strength: adam_and(mx.spd(strength)))(strength=0.0)
    state = tx.init(start())
    assert len(jax.tree_util.tree_leaves(state.inner_state[1].anchor)) == 3


@pytest.mark.skipif(OLD, reason="optax 0.1.5 has no tree_map_params")
@pytest.mark.parametrize("name", TRANSFORMS)
def test_tree_map_params_maps_anchors_and_nothing_else(name: str) -> None:
    tx, params = TRANSFORMS[name](), start()
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
    assert member.anchor["a"] == ("spec of rank 2", 2)
    assert member.anchor["b"]["c"] == ("spec of rank 1", 1)
    if isinstance(member, mx.SPDState):
        assert set(member._replace(anchor="other")) == {"other"}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_vmap_over_seeds(name: str) -> None:
    tx = TRANSFORMS[name]()
    scales = jnp.asarray([1.0, 1.7])
    params = jax.vmap(lambda s: jax.tree_util.tree_map(lambda x: s * x, start()))(scales)
    state = jax.vmap(tx.init)(params)
    step = jax.jit(jax.vmap(tx.update))
    for t in range(8):
        updates, state = step(jax.vmap(lambda p, t=t: gradient(p, t))(params), state, params)
        params = optax.apply_updates(params, updates)
    for i, scale in enumerate(scales):
        alone, _ = train(TRANSFORMS[name](), jax.tree_util.tree_map(lambda x, s=scale: s * x, start()))
        close(jax.tree_util.tree_map(lambda x, i=i: x[i], params), alone, atol=1e-5)


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

    def nnx_state() -> Any:
        nnx = pytest.importorskip("flax.nnx")
        return nnx.State({"a": nnx.Param(a), "c": nnx.Param(c)}), jax.tree_util.tree_leaves

    return {
        "dict": lambda: ({"a": a, "c": c}, lambda t: [t["a"], t["c"]]),
        "list": lambda: ([a, c], list),
        "tuple": lambda: ((a, c), list),
        "FrozenDict": frozen,
        "dataclass": dataclass,
        "nnx.State": nnx_state,
    }


@pytest.mark.parametrize("kind", containers())
@pytest.mark.parametrize("method", ["spd", "maps"])
def test_every_container(kind: str, method: str) -> None:
    params, leaves = containers()[kind]()
    keys = ("0", "1") if kind in ("list", "tuple") else ("a", "c")
    stack = mx.LayerStack({"first": {rf"{keys[0]}$": "stacked"}, "second": {rf"{keys[1]}$": "first"}})
    member = mx.spd(1.0) if method == "spd" else mx.maps(stack, 2.0)
    tx = adam_and(member)
    held, state = train(tx, params)
    assert jax.tree_util.tree_structure(held) == jax.tree_util.tree_structure(params)
    plain, _ = train(optax.adam(0.1), params)
    assert abs(leaves(held)[0] - leaves(params)[0]).sum() < 0.97 * abs(leaves(plain)[0] - leaves(params)[0]).sum()
    expected = {"a", "c"} if method == "spd" else {"a[0]", "a[1]", "a[2]"}
    names = {
        k.replace("0", "a", 1) if k[0] == "0" else k.replace("1", "c", 1) if k[0] == "1" else k
        for k in (m.split("/", 1)[1] for m in mx.metrics(state) if m.startswith("drift/"))
    }
    assert names == expected
    detached = mx.detach_anchor(state)
    close(mx.attach_anchor(detached, params)[1].anchor, state[1].anchor, atol=0)
