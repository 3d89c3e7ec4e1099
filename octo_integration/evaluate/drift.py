"""Drift: how far every pretrained tensor is from theta0, along the stack; for every method, plain Adam too."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

import maps_optax as mx
from octo_integration.common import files
from octo_integration.state import sharding

Tree = Any


@functools.partial(jax.jit, static_argnums=(2, 3))
def _norms(theta: jax.Array, theta0: jax.Array, stacked: bool, at: jax.sharding.Sharding) -> jax.Array:
    """f32[2], or f32[layers, 2] of a leaf that stacks them: ‖θ − θ0‖ and ‖θ0‖, placed as `at` says."""
    start = theta0.astype(jnp.float32)
    gap = theta.astype(jnp.float32) - start
    axes = tuple(range(int(stacked), theta.ndim))
    norms = jnp.sqrt(jnp.stack([jnp.sum(gap**2, axes), jnp.sum(start**2, axes)], axis=-1))
    return jax.lax.with_sharding_constraint(norms, at)


def _measure(theta: jax.Array, theta0: Any, stacked: bool) -> np.ndarray:
    """As `_norms`, on every process; theta0 comes to the device for this one leaf, shard by shard."""
    everywhere = sharding.replicated(cast(Any, theta.sharding).mesh)
    return np.asarray(_norms(theta, jax.device_put(theta0, theta.sharding), stacked, everywhere))


def drift(params: Tree, theta0: Tree, slices: Sequence[mx.Slice], lambda_max: float) -> list[dict[str, Any]]:
    """One row per pretrained tensor, or slice of one that stacks layers, in the order of the stack.

    Args:
      params: the parameters, on a mesh.
      theta0: those that training started from, same tree; anywhere.
      slices: of `mx.slices` for this tree; those without a position (fresh modules) have no row.
      lambda_max: strength at the first layer.

    Returns:
      Rows {module, block, layer (k = 1, 2, ... along the whole stack), name, drift (L2 norm), relative (to ‖θ0‖),
      strength (λ)}.
    """
    stacked = iter([s.row is not None for s in slices if s.row in (None, 0)])
    leaves = zip(jax.tree.leaves(params), jax.tree.leaves(theta0), stacked, strict=True)
    norms = [pair for leaf in leaves for pair in _measure(*leaf).reshape(-1, 2).tolist()]
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
    files.write_json(path, {"label": label, "step": step, "tensors": rows})
