"""Run by `test_devices.py` with a number of host devices, which is fixed at start-up; prints one JSON object."""

import json
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

COUNT = int(sys.argv[1])
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={COUNT}"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.sharding import Mesh, PartitionSpec  # noqa: E402

import maps_optax as mx  # noqa: E402

warnings.simplefilter("ignore")

WORD = 4
SIZE = (256, 512)
SWEEP = (1_000, 10_000, 100_000)


def costs(stage: Any) -> dict[str, float]:
    """XLA's own figures for a program, lowered or compiled."""
    found = stage.cost_analysis()
    return found[0] if isinstance(found, list) else found


def words() -> dict[str, float]:
    """Words that a compiled step reads and writes per parameter of one device, by where it is compiled."""
    tx = mx.spd(1.0)

    def step(params: Any, updates: Any, grads: Any, anchor: Any) -> Any:
        state = tx.init(params)._replace(anchor=anchor)
        return tx.update(updates, state, params, grad=grads)[0]

    def of(function: Callable[..., Any], *leading: int) -> float:
        leaves = [{"w": jax.ShapeDtypeStruct((*leading, *SIZE), jnp.float32)}] * 4
        return costs(function.lower(*leaves).compile())["bytes accessed"] / WORD / np.prod(SIZE)

    found = {"jit": of(jax.jit(step)), "vmap": of(jax.jit(jax.vmap(step)), 2) / 2, "pmap": of(jax.pmap(step), COUNT)}
    if hasattr(jax, "shard_map"):
        spec, mesh = PartitionSpec("x"), Mesh(np.array(jax.devices()), ("x",))

        def body(*trees: Any) -> Any:
            return jax.tree.map(lambda x: x[None], step(*jax.tree.map(lambda x: x[0], trees)))

        found["shard_map"] = of(jax.jit(jax.shard_map(body, mesh=mesh, in_specs=spec, out_specs=spec)), COUNT)
    return found


def sweep() -> dict[str, list[dict[str, float]]]:
    """Operations and bytes of a step as it is lowered, as the layers that a leaf stacks become more."""

    def each(tx: Any, **shapes: tuple[int, ...]) -> dict[str, float]:
        params = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()}

        def step(params: Any, state: Any, updates: Any, grads: Any) -> Any:
            return tx.update(updates, state, params, grad=grads)

        found = costs(jax.jit(step).lower(params, jax.eval_shape(tx.init, params), params, params))
        return {"flops": found["flops"], "bytes": found["bytes accessed"]}

    def lora(n: int) -> dict[str, float]:
        pair = {"lora_a": np.ones(n), "lora_b": np.ones(n)}
        return each(mx.lora_spd(pair), lora_a=(n, 4, 2), lora_b=(n, 2, 4))

    return {
        "l2": [each(mx.spd({"w": np.ones(n)}), w=(n, 8)) for n in SWEEP],
        "mars": [each(mx.spd({"w": np.ones(n)}, norm="mars"), w=(n, 2, 8)) for n in SWEEP],
        "adapters": [lora(n) for n in SWEEP],
    }


print(json.dumps({"words": words(), "sweep": sweep()}))
