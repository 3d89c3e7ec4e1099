"""Every container of parameters, and the training states that keep them."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import maps_optax as mx
from tests.maps_optax.matrix import TRANSFORMS, adam_and, alone, close, gradient, start, train


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
