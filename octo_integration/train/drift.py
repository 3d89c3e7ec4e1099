"""Drift: how far every pretrained tensor is from theta0, along the stack; for every method, plain Adam too."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import maps_optax as mx
from octo_integration.train import checkpoint

Tree = Any


@jax.jit
def _norms(theta: jax.Array, theta0: jax.Array) -> jax.Array:
    """f32[2]: ‖θ − θ0‖ and ‖θ0‖."""
    start = theta0.astype(jnp.float32)
    gap = theta.astype(jnp.float32) - start
    return jnp.sqrt(jnp.stack([jnp.sum(gap**2), jnp.sum(start**2)]))


_norms_of_slices = jax.jit(jax.vmap(_norms))


def drift(params: Tree, theta0: Tree, slices: Sequence[mx.Slice], lambda_max: float) -> list[dict[str, Any]]:
    """One row per pretrained tensor, or slice of one that stacks layers, in the order of the stack.

    Args:
      params: the parameters, sharded or not.
      theta0: those that training started from, same tree.
      slices: of `mx.slices` for this tree; those without a position (fresh modules) have no row.
      lambda_max: strength at the first layer.

    Returns:
      Rows {module, block, layer (k = 1, 2, ... along the whole stack), name, drift (L2 norm), relative (to ‖θ0‖),
      strength (λ)}.
    """
    stacked = iter([s.row is not None for s in slices if s.row in (None, 0)])
    measured = jax.device_get(
        jax.tree.map(lambda a, b: (_norms_of_slices if next(stacked) else _norms)(a, b), params, theta0)
    )
    norms = [pair for leaf in jax.tree.leaves(measured) for pair in leaf.reshape(-1, 2).tolist()]
    rows = [
        {
            "module": s.module,
            "block": s.block,
            "layer": s.position,
            "name": s.path if s.row is None else f"{s.path}[{s.row}]",
            "drift": moved,
            "relative": moved / start if start > 0 else 0.0,
            "strength": lambda_max * s.ratio,
        }
        for s, (moved, start) in zip(slices, norms, strict=True)
        if s.position is not None
    ]
    return sorted(rows, key=lambda row: row["layer"])


def write_drift(path: Path, rows: list[dict[str, Any]], *, label: str, step: int) -> None:
    """Writes drift.json, which `maps-vla plot` reads."""
    checkpoint.write_json(path, {"label": label, "step": step, "tensors": rows})
