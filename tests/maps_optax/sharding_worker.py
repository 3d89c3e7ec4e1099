"""Run by `test_sharding.py` in a process of its own, since the number of devices is fixed at start-up.

Prints one JSON object: `cases`, on 8 host devices of one process, or `processes`, over two processes of 4 devices.
"""

import collections
import json
import os
import re
import sys
from typing import Any

import numpy as np

MODE = sys.argv[1]
COUNT = 4 if MODE == "processes" else 8
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={COUNT}"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
import optax  # noqa: E402
from jax.sharding import AxisType, NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402

import maps_optax as mx  # noqa: E402

WIDE = {f"w{i}": (16, 32) for i in range(12)}
TRANSFORMS = {
    "spd": lambda strength: mx.spd(strength),
    "estimate": lambda strength: mx.spd(strength),
    "max_pull": lambda strength: mx.spd(strength, max_pull=1.0),
    "bf16 anchor": lambda strength: mx.spd(strength, anchor_dtype="bfloat16"),
    "mars": lambda strength: mx.spd(strength, norm="mars"),
    "hypergradient": lambda strength: mx.spd(strength, adapt=mx.hypergradient(0.3)),
    "drift budget": lambda strength: mx.spd(strength, adapt=mx.drift_budget(0.01, 0.3)),
    "l2_sp": lambda strength: mx.l2_sp(strength),
}
# name -> shapes, spec of each leaf
PATTERNS: dict[str, tuple[dict[str, tuple[int, ...]], dict[str, P]]] = {
    "one pattern": (WIDE, {k: P("x", None) for k in WIDE}),
    "two axes": (WIDE, {k: P("x", None) if i % 2 else P(None, "x") for i, k in enumerate(WIDE)}),
    "stacked and replicated": (
        {"blocks": (4, 16, 24), "bias": (24,), **WIDE},
        {"blocks": P(None, "x", None), "bias": P(), **{k: P("x", None) for k in WIDE}},
    ),
    "stacked axis split": (
        {"blocks": (8, 16, 24), "rows": (512, 4), **WIDE},
        {"blocks": P("x", None, None), "rows": P("x", None), **{k: P("x", None) for k in WIDE}},
    ),
}


def tree(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """Normal random float32 leaves."""
    rng = np.random.default_rng(seed)
    return {k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}


def strengths(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """λ = 1.5, and a falling vector for the stacked leaves."""
    return {k: np.linspace(2.0, 0.5, s[0]) if k in ("blocks", "rows") else 1.5 for k, s in shapes.items()}


def optimizer(name: str, strength: Any) -> optax.GradientTransformation:
    """The transformation under test around Adam."""
    member = TRANSFORMS[name](strength)
    if name == "l2_sp":
        return mx.chain(member, optax.adam(1e-2))
    return (optax.chain if name == "estimate" else mx.chain)(optax.adam(1e-2), member)


def collectives(text: str) -> dict[str, int]:
    """How often each collective appears in compiled HLO."""
    names = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
    return dict(collections.Counter(re.findall(rf" ({names})(?:-start)?\(", text)))


def run(tx: optax.GradientTransformation, shapes: Any, put: Any, steps: int = 4) -> tuple[Any, Any]:
    """Parameters and state after a few noisy steps whose gradient turns round, so that it triggers."""
    start, slope = tree(shapes, 0), tree(shapes, 1)
    params = put(start)
    state = tx.init(params)
    step = jax.jit(tx.update)
    for t in range(steps):
        noise = tree(shapes, 10 + t)
        grads = put({k: (v if t < 2 else -0.3 * v) + 0.1 * noise[k] for k, v in slope.items()})
        updates, state = step(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def worst(a: Any, b: Any) -> float:
    """The largest absolute difference between two trees."""
    pairs = zip(jax.tree_util.tree_leaves(a), jax.tree_util.tree_leaves(b), strict=True)
    return max(float(np.abs(np.asarray(x, np.float64) - np.asarray(y, np.float64)).max()) for x, y in pairs)


def find(state: Any) -> Any:
    """The member state that holds an anchor."""
    return next(s for s in state if isinstance(s, (mx.SPDState, mx.L2SPState)))


def case(transform: str, pattern: str, axes: str) -> dict[str, Any]:
    """One transformation under one sharding pattern, against one device."""
    shapes, specs = PATTERNS[pattern]
    tx = optimizer(transform, strengths(shapes))
    mesh = jax.make_mesh((8,), ("x",), axis_types=(getattr(AxisType, axes),))

    def put(t: Any) -> Any:
        return {k: jax.device_put(v, NamedSharding(mesh, specs[k])) for k, v in t.items()}

    one_params, one_state = run(tx, shapes, lambda t: {k: jax.device_put(v) for k, v in t.items()})
    with jax.set_mesh(mesh):
        params, state = run(tx, shapes, put)
        text = jax.jit(tx.update).lower(put(tree(shapes, 1)), state, params).compile().as_text()
        eager, jitted = find(tx.init(put(tree(shapes, 0)))), find(jax.jit(tx.init)(put(tree(shapes, 0))))
    same = [
        state.anchor[k].sharding.is_equivalent_to(NamedSharding(mesh, specs[k]), len(s))
        for k, s in shapes.items()
        for state in (eager, jitted)
    ]
    triggered = getattr(find(one_state), "triggered", np.ones(1))
    return {
        "collectives": collectives(text),
        "anchor sharded as its parameter": all(same),
        "difference": worst(params, one_params),
        "triggered": float(np.asarray(triggered).mean()),
    }


ADAPTERS: dict[str, tuple[dict[str, tuple[int, ...]], dict[str, P]]] = {
    "kernels split": (
        {f"{k}/{f}": s for k in "abc" for f, s in (("lora_a", (16, 4)), ("lora_b", (4, 32)))},
        {f"{k}/{f}": s for k in "abc" for f, s in (("lora_a", P("x", None)), ("lora_b", P(None, "x")))},
    ),
    "blocks stacked": (
        {"blocks/lora_a": (8, 16, 4), "blocks/lora_b": (8, 4, 32), "c/lora_a": (16, 4), "c/lora_b": (4, 32)},
        {
            "blocks/lora_a": P(None, "x", None),
            "blocks/lora_b": P(None, None, "x"),
            "c/lora_a": P(),
            "c/lora_b": P(None, "x"),
        },
    ),
    "stacked axis split": (
        {"blocks/lora_a": (8, 16, 4), "blocks/lora_b": (8, 4, 32)},
        {"blocks/lora_a": P("x", None, None), "blocks/lora_b": P("x", None, None)},
    ),
}


def adapters(pattern: str, treatment: str, axes: str) -> dict[str, Any]:
    """`lora_spd` under one sharding pattern, against one device."""
    shapes, specs = ADAPTERS[pattern]
    lam = {k: np.linspace(2.0, 0.5, s[0]) if "blocks" in k else 1.5 for k, s in shapes.items()}
    tx = mx.chain(optax.adam(1e-2), mx.lora_spd(lam, treatment=treatment))
    mesh = jax.make_mesh((8,), ("x",), axis_types=(getattr(AxisType, axes),))

    def put(t: Any) -> Any:
        return {k: jax.device_put(v, NamedSharding(mesh, specs[k])) for k, v in t.items()}

    one_params, one_state = run(tx, shapes, lambda t: {k: jax.device_put(v) for k, v in t.items()})
    with jax.set_mesh(mesh):
        params, state = run(tx, shapes, put)
        text = jax.jit(tx.update).lower(put(tree(shapes, 1)), state, params).compile().as_text()
    same = [
        x.sharding.is_equivalent_to(NamedSharding(mesh, specs[k]), x.ndim)
        for k in shapes
        for x in jax.tree_util.tree_leaves(state[1].anchor[k])
    ]
    return {
        "collectives": collectives(text),
        "anchor sharded as its parameter": all(same),
        "difference": worst(params, one_params),
        "triggered": float(np.asarray(one_state[1].triggered).mean()),
    }


def in_shard_map(**options: Any) -> dict[str, Any]:
    """`spd` with an axis name and other options inside `shard_map`, against the whole arrays."""
    shapes, specs = PATTERNS["stacked and replicated"]
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    strength = strengths(shapes)
    whole = mx.chain(optax.adam(1e-2), mx.spd(strength, **options))
    split = mx.chain(optax.adam(1e-2), mx.spd(strength, axis_name="x", **options))
    params = {k: v + 0.1 * tree(shapes, 3)[k] for k, v in tree(shapes, 0).items()}
    state = whole.init(tree(shapes, 0))
    grads = tree(shapes, 1)
    expected, expected_state = jax.jit(whole.update)(grads, state, params)
    state_specs = jax.tree_util.tree_map(lambda _: P(), state)
    adam = state[0][0]._replace(count=P(), mu=specs, nu=specs)
    state_specs = ((adam, *state_specs[0][1:]), state_specs[1]._replace(anchor=specs))
    step = jax.jit(
        jax.shard_map(split.update, mesh=mesh, in_specs=(specs, state_specs, specs), out_specs=(specs, state_specs))
    )
    updates, new_state = step(grads, state, params)
    return {
        "collectives": collectives(step.lower(grads, state, params).compile().as_text()),
        "difference": worst(updates, expected),
        "triggered": float(np.asarray(new_state[1].triggered).mean()),
        "strength moved by": worst(new_state[1].strength, state[1].strength),
        "strength": worst(new_state[1].strength, expected_state[1].strength),
        "same triggers": bool((new_state[1].triggered == expected_state[1].triggered).all()),
    }


def two_processes() -> dict[str, Any]:
    """This process's half of a run over two, against a run of its own on one device."""
    rank, port = int(sys.argv[2]), sys.argv[3]
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=rank)
    out: dict[str, Any] = {"devices": jax.device_count()}
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    shapes, specs = PATTERNS["stacked and replicated"]

    def put(t: Any) -> Any:
        return {
            k: jax.make_array_from_callback(v.shape, NamedSharding(mesh, specs[k]), lambda i, v=v: v[i])
            for k, v in t.items()
        }

    whole = jax.jit(lambda t: t, out_shardings=NamedSharding(mesh, P()))
    for name in TRANSFORMS:
        tx = optimizer(name, strengths(shapes))
        params, state = run(tx, shapes, put)
        one, _ = run(tx, shapes, lambda t: {k: jax.device_put(v, jax.local_devices()[0]) for k, v in t.items()})
        everywhere = {k: np.asarray(v.addressable_data(0)) for k, v in whole(params).items()}
        saved = mx.detach_anchor(state)
        attached = mx.attach_anchor(saved, put(tree(shapes, 0)))
        out[name] = {
            "difference": worst(everywhere, one),
            "attached": bool(
                all(
                    np.array_equal(a.addressable_data(0), b.addressable_data(0))
                    for a, b in zip(
                        jax.tree_util.tree_leaves(find(state).anchor),
                        jax.tree_util.tree_leaves(find(attached).anchor),
                        strict=True,
                    )
                )
            ),
        }
    return out


if MODE == "processes":
    print(json.dumps(two_processes()))
else:
    results = {
        f"{t} | {p} | {axes}": case(t, p, axes)
        for t in TRANSFORMS
        for p in PATTERNS
        for axes in ("Auto", "Explicit")
        if t == "spd" or (p == "stacked axis split" and axes == "Auto")
    }
    lora = {
        f"{t} | {p} | {axes}": adapters(p, t, axes)
        for p in ADAPTERS
        for t, axes in (("product", "Auto"), ("product", "Explicit"), ("init", "Auto"), ("zero", "Auto"))
    }
    mapped = {"fixed": in_shard_map(), "adapted": in_shard_map(adapt=mx.drift_budget(0.05, 0.3))}
    print(json.dumps({"cases": results, "adapters": lora, "shard_map": mapped}))
