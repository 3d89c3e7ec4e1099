"""From observations to normalised actions, jitted."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from octo_integration.state import sharding
from octo_integration.state.setup import Built

Batch = Mapping[str, Any]
Tree = Any
Predict = Callable[[Tree, Batch, int], np.ndarray]


def make_predict(built: Built, mesh: Mesh) -> Predict:
    """(params, reader's batch that every process holds in full, number) -> f32[B, chunk, A] normalised action chunks.

    Heads that draw draw the same for the same number. Short batches are filled up, so the function compiles once.
    """
    size = 0

    @functools.partial(jax.jit, out_shardings=sharding.replicated(mesh))
    def forward(params: Tree, observation: Tree, task: Tree, number: int) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(0), number)
        actions: Any = built.model.apply({"params": params}, observation, task, key)
        return actions

    def predict(params: Tree, batch: Batch, number: int) -> np.ndarray:
        nonlocal size
        inputs = built.device_form(batch)
        rows = len(inputs["task"]["tokens"])
        parts = sharding.batch_parts(mesh)
        size = max(size, -(-rows // parts) * parts)

        def fill(x: np.ndarray) -> np.ndarray:
            return np.concatenate([x, np.repeat(x[-1:], size - rows, axis=0)])

        filled = jax.tree.map(fill, {name: inputs[name] for name in ("observation", "task")})
        placed = sharding.put_whole(filled, mesh)
        return np.asarray(forward(params, placed["observation"], placed["task"], number))[:rows]

    return predict
