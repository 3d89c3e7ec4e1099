"""Every transformation, with λ and positions in all their forms for whatever tree comes: for the tests that fuzz."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import maps_optax as mx
from tests.maps_optax.trees import is_float

# Compiling is what takes the time, and code that runs once need not be fast.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
HAS_OPTIONS = "compiler_options" in inspect.signature(jax.jit).parameters


def jitted(function: Callable[..., Any]) -> Callable[..., Any]:
    return jax.jit(function, compiler_options=QUICK) if HAS_OPTIONS else jax.jit(function)


def numbered(change: Callable[[int, Any], Any], params: Any) -> Any:
    """`change` applied to every leaf with its number."""
    flat, treedef = jax.tree_util.tree_flatten(params)
    return jax.tree_util.tree_unflatten(treedef, [change(i, x) for i, x in enumerate(flat)])


def strengths(params: Any) -> Any:
    """λ of every form: a number, a vector along axis 0, 0 and None, which integers get."""

    def strength(i: int, leaf: Any) -> Any:
        if not is_float(leaf) or i % 5 == 4:
            return None
        if leaf.ndim and leaf.shape[0] and i % 2:
            return np.linspace(2.0, 0.0, leaf.shape[0])
        return (1.5, 0.5, 3.0, 0.0)[i % 4]

    return numbered(strength, params)


def positions(params: Any) -> Any:
    """Positions of every form: k, one per slice of axis 0, and None, which integers get."""

    def position(i: int, leaf: Any) -> Any:
        if not is_float(leaf) or i % 5 == 4:
            return None
        return np.arange(1, leaf.shape[0] + 1) if leaf.ndim and i % 2 else 1 + i % 3

    return numbered(position, params)


def onward() -> optax.GradientTransformation:
    """An optimizer whose update goes along the gradient, so that a gradient along the displacement is pulled."""
    return optax.stateless(lambda g, p: jax.tree_util.tree_map(lambda x: (0.3 * x).astype(x.dtype), g))


def held(member: Any) -> Any:
    return mx.chain(onward(), member)


def every_other(params: Any) -> Any:
    return numbered(lambda i, _: i % 2 == 0, params)


ALL = mx.LayerStack({"everything": {"(?s:.*)": "first"}})
NO_INTEGERS: dict[str, Callable[[], Any]] = {
    "spd number": lambda: held(mx.spd(1.5)),
    "maps stack": lambda: held(mx.maps(ALL, 1.5)),
    "MultiSteps": lambda: optax.MultiSteps(held(mx.spd(strengths)), 2),
    "apply_if_finite": lambda: optax.apply_if_finite(held(mx.maps(positions, 1.5)), 3),
}
TRANSFORMS: dict[str, Callable[[], Any]] = {
    **NO_INTEGERS,
    "spd tree": lambda: held(mx.spd(strengths)),
    "spd in a chain within": lambda: held(optax.chain(optax.identity(), mx.chain(mx.spd(strengths)))),
    "spd gradient": lambda: held(mx.spd(strengths, criterion="gradient")),
    "spd estimate": lambda: optax.chain(onward(), mx.spd(strengths)),
    "spd max_pull": lambda: held(mx.spd(strengths, max_pull=1.0)),
    "spd mars": lambda: held(mx.spd(strengths, norm="mars")),
    "spd bf16 anchor": lambda: held(mx.spd(strengths, anchor_dtype=jnp.bfloat16)),
    "spd hypergradient": lambda: held(mx.spd(strengths, adapt=mx.hypergradient(0.5))),
    "maps drift_budget": lambda: held(mx.maps(positions, 1.5, adapt=mx.drift_budget(0.05, 0.5))),
    "maps scheduled": lambda: held(mx.maps(positions, optax.linear_schedule(2.0, 1.0, 4))),
    **{
        f"maps {schedule}": lambda schedule=schedule: held(mx.maps(positions, 2.0, schedule))
        for schedule in ("linear", "cosine", "constant", "exponential", "step")
    },
    "l2_sp": lambda: mx.chain(mx.l2_sp(strengths), onward()),
    "masked": lambda: optax.masked(held(mx.spd(strengths)), every_other),
    "multi_transform": lambda: optax.multi_transform(
        {"a": held(mx.spd(strengths)), "b": mx.chain(mx.l2_sp(strengths), onward())},
        lambda params: numbered(lambda i, _: "ab"[i % 2], params),
    ),
}
if hasattr(optax, "tree_utils"):  # inject_hyperparams of optax 0.1.5 hands no gradient on
    TRANSFORMS["spd injected"] = lambda: held(optax.inject_hyperparams(mx.spd, hyperparam_dtype=jnp.float32)(strengths))
ADAPTERS = {
    treatment: lambda treatment=treatment: held(mx.lora_spd(1.5, treatment=treatment))
    for treatment in ("product", "init", "zero")
}
