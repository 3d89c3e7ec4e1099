"""A model, random weights for it and a batch of random samples; the work that they are."""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from benchmarks.batch import abstract_batch
from benchmarks.flops import flops
from octo_integration.config import MeshConfig
from octo_integration.model.config import Remat
from octo_integration.model.named import model_shapes
from octo_integration.model.sizes import CONFIGS
from octo_integration.model.vla import VLA
from octo_integration.state import sharding
from octo_integration.train.step import Loss, make_loss


class Case(NamedTuple):
    """What a training step is compiled for and run on; the parameters are on the host."""

    mesh: Mesh
    loss: Loss
    batch: Any
    shapes: Any
    params: Any


def case(model: str, batch: int, dtype: Literal["float32", "bfloat16"], remat: Remat) -> Case:
    """`batch` samples for the configuration of that name, over all devices."""
    mesh = sharding.make_mesh(MeshConfig())
    loss = make_loss(VLA(dataclasses.replace(CONFIGS[model], dtype=dtype, remat=remat)))
    rng = np.random.default_rng(0)
    samples = jax.tree.map(lambda x: _random(x, rng), abstract_batch(model, batch, mesh))
    shapes = model_shapes(model)
    params = jax.tree.map(lambda x: 0.02 * rng.standard_normal(x.shape, np.float32), shapes)
    return Case(mesh, loss, jax.device_put(samples, sharding.batch_sharding(mesh)), shapes, params)


def step_flops(model: str, mesh: jax.sharding.Mesh) -> int:
    """Of the loss and its gradient, for one sample; what a backward pass computes again does not count."""
    loss = make_loss(VLA(dataclasses.replace(CONFIGS[model], remat="none")))
    key = jax.eval_shape(lambda: jax.random.key(0))

    def gradient(params: Any, batch: Any, key: Any) -> Any:
        return jax.grad(lambda p: loss(p, batch, key)[0])(params)

    return flops(gradient, model_shapes(model), abstract_batch(model, 1, mesh), key)


def _random(like: Any, rng: np.random.Generator) -> np.ndarray:
    if like.dtype == np.bool_:
        return np.ones(like.shape, bool)
    if like.dtype == np.uint8:
        return rng.integers(0, 256, like.shape, np.uint8)
    if like.dtype == np.int32:
        return rng.integers(1, 8, like.shape, np.int32)
    return rng.uniform(-1, 1, like.shape).astype(np.float32)
