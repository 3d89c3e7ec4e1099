"""What is compared: the optimizers, the trees of parameters, and the step that every benchmark of them compiles."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import maps_optax as mx

LEARNING_RATE = 1e-3
STRENGTH = 3.2
HOST = "pinned_host"


def positions(params: Any) -> Any:
    """The leaves in a row, first to last, each a layer of its own (a leaf that stacks layers: its layers in a row)."""
    leaves, treedef = jax.tree_util.tree_flatten(params)
    stacked = any(x.ndim == 3 for x in leaves)
    places: list[Any] = [i + 1 for i in range(len(leaves))]
    if stacked:
        places = [np.arange(1, x.shape[0] + 1) if x.ndim > 1 and x.shape[0] <= 64 else 1 for x in leaves]
    return jax.tree_util.tree_unflatten(treedef, places)


def adam() -> optax.GradientTransformation:
    """What everything is compared with."""
    return optax.adam(LEARNING_RATE)


def rows_of(params: Any) -> Any:
    """λ for each row of each leaf by itself, as for the entries of a vocabulary."""
    return jax.tree_util.tree_map(lambda x: np.full(x.shape[0], STRENGTH), params)


OPTIMIZERS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "adam": adam,
    "maps": lambda: mx.chain(adam(), mx.maps(positions, STRENGTH)),
    "maps, estimated": lambda: optax.chain(adam(), mx.maps(positions, STRENGTH)),
    "maps, bf16 anchor": lambda: mx.chain(adam(), mx.maps(positions, STRENGTH, anchor_dtype="bfloat16")),
    "maps, host anchor": lambda: mx.chain(adam(), mx.maps(positions, STRENGTH, anchor_memory_kind=HOST)),
    "uniform": lambda: mx.chain(adam(), mx.spd(STRENGTH)),
    "l2_sp": lambda: mx.chain(mx.l2_sp(1e-2), adam()),
    "per row": lambda: mx.chain(adam(), mx.spd(rows_of)),
    "per row, mars": lambda: mx.chain(adam(), mx.spd(rows_of, norm="mars")),
}


def square(leaves: int, parameters: float, dtype: Any = jnp.float32) -> dict[str, jax.ShapeDtypeStruct]:
    """`leaves` square matrices of about `parameters` elements in all."""
    side = max(1, round((parameters / leaves) ** 0.5))
    return {f"leaf_{i:04d}": jax.ShapeDtypeStruct((side, side), dtype) for i in range(leaves)}


def table(rows: int) -> dict[str, jax.ShapeDtypeStruct]:
    """One leaf of so many rows of 64, a vocabulary's."""
    return {"table": jax.ShapeDtypeStruct((rows, 64), jnp.float32)}


def qwen(layers: int = 24, *, stacked: bool = False) -> dict[str, Any]:
    """The blocks of Qwen2.5-0.5B, 358M parameters: 289 leaves, or 13 whose first axis stacks the layers (`nn.scan`)."""
    width, keys, hidden = 896, 128, 4864
    block = {
        "input_norm": (width,),
        "q": {"kernel": (width, width), "bias": (width,)},
        "k": {"kernel": (width, keys), "bias": (keys,)},
        "v": {"kernel": (width, keys), "bias": (keys,)},
        "o": (width, width),
        "post_norm": (width,),
        "gate": (width, hidden),
        "up": (width, hidden),
        "down": (hidden, width),
    }

    def leaf(shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((layers, *shape) if stacked else shape, jnp.float32)

    def make() -> Any:
        return jax.tree.map(leaf, block, is_leaf=lambda x: isinstance(x, tuple))

    blocks = {"blocks": make()} if stacked else {f"block_{i}": make() for i in range(layers)}
    return {**blocks, "norm": jax.ShapeDtypeStruct((width,), jnp.float32)}


def size(tree: Any) -> int:
    """Number of parameters."""
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))


def step_of(tx: optax.GradientTransformation) -> Callable[[Any, Any, Any], tuple[Any, Any]]:
    """(params, state, grads) -> (params, state): the optimizer's part of a training step."""

    def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step
