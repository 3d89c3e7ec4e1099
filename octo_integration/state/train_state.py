"""All that a run carries from step to step: made, placed on a mesh, and as shapes."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from octo_integration.state import lora, sharding
from octo_integration.state.optimizer import Optimizer

Tree = Any


class TrainState(NamedTuple):
    """All that a run carries from step to step.

    Attributes:
      step: int32[], batches consumed (optimizer steps x optimizer.accumulate).
      params: the parameters that are trained, float32: all of them, unless there are adapters (see `lora.split`).
      opt_state: of `make_optimizer`.
      frozen: the others, bfloat16.
    """

    step: jax.Array
    params: Tree
    opt_state: Tree
    frozen: Tree = {}

    @property
    def model(self) -> Tree:
        """All parameters, as the model takes them."""
        return lora.whole(self.params, self.frozen) if self.frozen else self.params


def abstract_state(params: Tree, tx: Optimizer, mesh: Mesh, min_size: int, anchor_memory: str = "device") -> TrainState:
    """The state's shapes and shardings as `jax.ShapeDtypeStruct`s; nothing is computed.

    Args:
      params: arrays or shapes.
      min_size: see `sharding.param_shardings`.
      anchor_memory: of `Hold`; where anchors are placed.
    """
    shapes = jax.eval_shape(functools.partial(_create, tx), params)
    params_at, frozen_at = (sharding.param_shardings(part, mesh, min_size) for part in (shapes.params, shapes.frozen))
    return placed(shapes, tx, mesh, params_at, frozen_at, anchor_memory)


def placed(
    shapes: TrainState, tx: Optimizer, mesh: Mesh, params_at: Tree, frozen_at: Tree, anchor_memory: str = "device"
) -> TrainState:
    """Shapes with shardings, those of the optimizer state as `params_at`."""
    state_at = sharding.opt_state_shardings(tx, shapes.opt_state, params_at, mesh)
    if anchor_memory != "device":
        state_at = sharding.anchors_in(state_at, anchor_memory)

    def place(shape: Any, at: Any) -> Any:
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=at)

    return TrainState(
        place(shapes.step, sharding.replicated(mesh)),
        jax.tree.map(place, shapes.params, params_at),
        jax.tree.map(place, shapes.opt_state, state_at),
        jax.tree.map(place, shapes.frozen, frozen_at),
    )


def shardings_of(abstract: Tree) -> Tree:
    """The shardings of a tree of `jax.ShapeDtypeStruct`s."""
    return jax.tree.map(lambda x: x.sharding, abstract)


def init_state(params: Tree, tx: Optimizer, like: TrainState) -> TrainState:
    """The state of step 0, placed as `like` (of `abstract_state`) says.

    It holds copies of `params`, so donating it leaves them alone.
    """
    placed = jax.device_put(params, shardings_of(like.model))
    return jax.jit(functools.partial(_create, tx), out_shardings=shardings_of(like))(placed)


def _create(tx: Optimizer, params: Tree) -> TrainState:
    trained, frozen = lora.split(jax.tree.map(jnp.copy, params))
    return TrainState(jnp.zeros((), jnp.int32), trained, tx.init(trained), frozen)
