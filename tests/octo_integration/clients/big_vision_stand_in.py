"""big_vision's factory and train step as far as the client meets them, and what they make of small trees.

Run as a program it trains on four devices and prints the outcome.
"""

import functools
import json
import operator
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import maps_optax as mx
from octo_integration.clients import big_vision

ROOT = Path(__file__).parents[3]
STEPS = 12
BLOCKS = (0, 1, 2, 10)  # read as text, 10 would come before 2
LR, WD, WARMUP = 0.02, 0.004, 3
SCHEDULE = {"warmup_steps": WARMUP}
FORMS = ("make", "optax_name")
KINDS = ("numbered", "scanned")
tree_map = jax.tree_util.tree_map


class Config(dict[str, Any]):
    """As much of ml_collections.ConfigDict as a factory reads."""

    __getattr__ = dict.__getitem__


def by_path(tree: Any) -> dict[str, Any]:
    pairs = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {"/".join(key.key for key in keys): leaf for keys, leaf in pairs}


def rate(total_steps: int, base: float = 1.0, warmup_steps: int = 0) -> Callable[[Any], Any]:
    """Rises from 0, then falls."""
    return lambda t: base * jnp.minimum(1, t / warmup_steps) * (1 - t / (2 * total_steps))


def first_match(params: Any, patterns: Any) -> Any:
    """Of each leaf, the number of the first pattern that is its whole path, or −1."""
    paths = by_path(params)
    numbers = [next((i for i, p in enumerate(patterns) if re.fullmatch(p, path)), -1) for path in paths]
    return jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(params), numbers)


def frozen_leaves(schedule: Any, params: Any) -> Any:
    pairs = schedule if isinstance(schedule, (list, tuple)) else [(".*", schedule)]
    return tree_map(lambda i: pairs[i][1] is None, first_match(params, [p for p, _ in pairs]))


def per_pattern(pairs: Any, params: Any, make: Callable[[Any], Any]) -> list[Any]:
    groups = first_match(params, [p for p, _ in pairs])
    return [optax.masked(make(value), tree_map(lambda g, i=i: g == i, groups)) for i, (_, value) in enumerate(pairs)]


def factory_make(config: Any, params: Any, *, sched_kw: Any) -> Any:
    schedule = config.get("schedule", {})
    pairs = schedule if isinstance(schedule, (list, tuple)) else [(".*", schedule)]
    frozen = frozen_leaves(schedule, params)
    optimizer = operator.attrgetter(config.optax_name)(optax)(**config.get("optax", {}))
    functions = [rate(**sched_kw, **s) for _, s in pairs if s is not None]
    live = iter(functions)
    members = [optax.masked(optimizer, tree_map(operator.not_, frozen)), optax.scale(config.lr)]
    members += per_pattern(config.get("lr_mults", []), params, optax.scale)
    if config.get("wd"):
        members += per_pattern(
            config.get("wd_mults", [(".*/kernel$", 1.0)]), params, lambda m: optax.add_decayed_weights(config.wd * m)
        )
    members += per_pattern(
        pairs, params, lambda s: optax.set_to_zero() if s is None else optax.scale_by_schedule(next(live))
    )
    return optax.chain(*members, optax.scale(-1.0)), functions


def replace_frozen(schedule: Any, tree: Any, replacement: Any) -> Any:
    return tree_map(lambda leaf, f: replacement if f else leaf, tree, frozen_leaves(schedule, tree))


bv_optax = types.SimpleNamespace(make=factory_make, replace_frozen=replace_frozen)


def weights(kind: str, seed: int) -> Any:
    """A tower of four blocks and its projection, a new head, and another tower."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> Any:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    stacked = {"encoderblock": {"kernel": normal(len(BLOCKS), 3, 4)}}
    numbered = {f"encoderblock_{i}": {"kernel": normal(3, 4)} for i in BLOCKS}
    return {
        "img": {
            "embedding": {"kernel": normal(3, 4), "bias": normal(4)},
            "Transformer": stacked if kind == "scanned" else numbered,
            "head": {"kernel": normal(4, 4)},
        },
        "classifier": {"kernel": normal(4, 4), "bias": normal(4)},
        "txt": {"kernel": normal(4, 4)},
    }


def random_init(kind: str) -> Any:
    return weights(kind, 0)


def loaded(kind: str) -> Any:
    return weights(kind, 1)


def gradient(params: Any, t: Any) -> Any:
    """Away from where it is for some steps, then back, so that it triggers; of a different size in each leaf."""
    sign = jnp.where(t < 7, -1.0, 0.4)
    return tree_map(lambda x: (sign * x + 0.01 * (t + 1)) / x.size, params)


def train(tx: Any, kind: str, *, anchored: bool = True, init: Any = None, start: Any = None, steps: int = STEPS) -> Any:
    """As big_vision trains: `init` under jit on random weights, then loading, then donating steps."""
    opt = jax.jit(tx.init)(random_init(kind) if init is None else init)
    params = tree_map(jnp.array, loaded(kind) if start is None else start)
    state = {"params": params, "opt": mx.set_anchor(opt, params) if anchored else opt}

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: Any, t: Any) -> Any:
        updates, opt = tx.update(gradient(state["params"], t), state["opt"], state["params"])
        return {"params": optax.apply_updates(state["params"], updates), "opt": opt}

    for t in range(steps):
        state = step(state, t)
    return state["params"], state["opt"]


def config(form: str, maps: Any = (), **changes: Any) -> Config:
    maps = {"lambda_max": 1.5, "free": ["classifier/", "txt/"], **dict(maps)}
    common = {"lr": LR, "wd": WD, "schedule": [("txt/.*", None), (".*", SCHEDULE)]}
    if form == "make":
        return Config({**common, "optax_name": "scale_by_adam", "maps": maps, **changes})
    foreseen = {"learning_rate": rate(STEPS, base=LR, warmup_steps=WARMUP), "weight_decay": WD / LR}
    return Config({**common, "optax_name": "maps_optax.adam", "optax": {**foreseen, **maps}, **changes})


def build(form: str, kind: str, maps: Any = (), **changes: Any) -> Any:
    shapes = jax.eval_shape(lambda: loaded(kind))
    return big_vision.make(bv_optax, config(form, maps, **changes), shapes, sched_kw={"total_steps": STEPS})[0]


def factory(kind: str, **changes: Any) -> Any:
    return factory_make(config("make", **changes), loaded(kind), sched_kw={"total_steps": STEPS})[0]


def kernels(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def adamw(mult: float = 1.0, warmup_steps: int = WARMUP) -> Any:
    """The factory's step as Optax's own AdamW makes it: weight decay is not multiplied by lr nor by lr_mults."""
    return optax.adamw(rate(STEPS, LR * mult, warmup_steps), weight_decay=WD / (LR * mult), mask=kernels)


FROZEN = ("txt/.*", optax.set_to_zero())
STACK = mx.LayerStack(
    {
        "siglip": {
            r"img/embedding/": "first",
            r"img/Transformer/encoderblock_(\d+)/": "block",
            r"img/Transformer/encoderblock/": "stacked",
        },
        "bridge": {r"img/head/": "first"},
    },
    free=["classifier/", "txt/"],
    optional=[r"img/Transformer/encoderblock_(\d+)/", r"img/Transformer/encoderblock/"],
)


def by_hand(kind: str, groups: Any) -> Any:
    """`groups`: (pattern, transformation) pairs, first match wins; MAPS behind them all, on the whole tree."""
    labels = tree_map(str, first_match(loaded(kind), [p for p, _ in groups]))
    step = optax.multi_transform({str(i): tx for i, (_, tx) in enumerate(groups)}, labels)
    return mx.chain(step, mx.maps(STACK, 1.5))


def trained_by_hand(kind: str, groups: Any) -> Any:
    """Without any late loading: initialised on the weights that training starts from."""
    return train(by_hand(kind, groups), kind, anchored=False, init=loaded(kind))


def spd_state(opt_state: Any) -> mx.SPDState:
    nodes = jax.tree_util.tree_leaves(opt_state, is_leaf=lambda node: isinstance(node, mx.SPDState))
    (state,) = [node for node in nodes if isinstance(node, mx.SPDState)]
    return state


def close(a: Any, b: Any, atol: float = 2e-6) -> None:
    tree_map(functools.partial(np.testing.assert_allclose, rtol=0, atol=atol), a, b)


def apart(a: Any, b: Any) -> float:
    return max(float(jnp.abs(x - y).max()) for x, y in zip(*map(jax.tree_util.tree_leaves, (a, b))))


def sharded_case(form: str, kind: str) -> dict[str, Any]:
    """Trains on four devices as big_vision does, with the state's shardings inferred from its leaves' shapes."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("fsdp",))

    def place(leaf: Any) -> Any:
        split = leaf.ndim >= 2 and leaf.shape[-1] % 4 == 0
        spec = [None] * (leaf.ndim - 1) + ["fsdp"] if split else []
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))

    tx, shapes = build(form, kind), jax.eval_shape(lambda: loaded(kind))
    placed = tree_map(place, {"params": shapes, "opt": jax.eval_shape(tx.init, shapes)})
    params = jax.jit(lambda: random_init(kind), out_shardings=placed["params"])()
    opt = jax.jit(tx.init, out_shardings=placed["opt"])(params)
    params = jax.device_put(loaded(kind), placed["params"])
    state = {"params": params, "opt": mx.set_anchor(opt, params)}
    big_vision.check_anchor(state["opt"], state["params"])

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=placed)
    def step(state: Any, t: Any) -> Any:
        updates, opt = tx.update(gradient(state["params"], t), state["opt"], state["params"])
        return {"params": optax.apply_updates(state["params"], updates), "opt": opt}

    for t in range(STEPS):
        state = step(state, t)
    kernel, anchor = (tree["img"]["embedding"]["kernel"] for tree in (state["params"], spd_state(state["opt"]).anchor))
    return {
        "params": [leaf.tolist() for leaf in jax.tree_util.tree_leaves(state["params"])],
        "devices": len(kernel.sharding.device_set),
        "split": not kernel.sharding.is_fully_replicated,
        "anchor as its parameter": anchor.sharding == kernel.sharding,
    }


if __name__ == "__main__":
    print(json.dumps({form: sharded_case(form, kind) for form, kind in zip(FORMS, KINDS)}))
