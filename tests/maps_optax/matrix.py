"""The rows of the matrix: every exported transformation, and where it ends without a wrapper."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

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
