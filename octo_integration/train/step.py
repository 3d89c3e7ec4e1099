"""One training step: the action head's loss and an update of the optimizer, jitted on a mesh.

The step is one jitted function whose state is donated, so parameters, moments and anchors exist once. It returns
device scalars and never waits for the device; the caller fetches them when it logs.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from octo_integration.config import NanPolicy
from octo_integration.model import partition
from octo_integration.state import sharding
from octo_integration.state.optimizer import Optimizer
from octo_integration.state.train_state import TrainState, shardings_of
from octo_integration.train import finite

Tree = Any
Batch = Mapping[str, Any]
Metrics = dict[str, jax.Array]
# (params, device batch, key of what is drawn) -> (f32[], what the action head logs).
Loss: TypeAlias = Callable[[Tree, Batch, jax.Array], tuple[jax.Array, Metrics]]


def make_loss(model: nn.Module) -> Loss:
    """The model's own loss on a device batch; the precision of the pass is the model's too."""

    def loss(params: Tree, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        value: Any = model.apply({"params": params}, batch, key, method="loss")
        return value

    return loss


def make_train_step(
    loss: Loss,
    tx: Optimizer,
    like: TrainState,
    mesh: Mesh,
    seed: int,
    nan_policy: NanPolicy = "stop",
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The jitted step: (state, device batch) -> (next state, device scalars: "loss", "grad_norm", the head's own).

    The state is donated: the caller's is gone after the call. `like` is of `abstract_state`. What the loss draws
    follows from `seed` and the state's step, so a resumed run draws the same.

    Args:
      nan_policy: skip: a batch whose loss or gradient is not finite changes nothing but `state.step`.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        def of_trained(params: Tree) -> tuple[jax.Array, Metrics]:
            return loss(state._replace(params=params).model, batch, key)

        key = jax.random.fold_in(jax.random.key(seed), state.step)
        with partition.within(mesh):
            (value, logged), grads = jax.value_and_grad(of_trained, has_aux=True)(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        norm = optax.tree.norm(grads)
        metrics = {"loss": value, "grad_norm": norm, finite.BAD_LEAF: finite.bad_leaf(grads), **logged}
        if nan_policy == "skip":
            good = jnp.isfinite(value) & jnp.isfinite(norm)
            metrics[finite.SKIPPED] = ~good
            new, old = (params, opt_state), (state.params, state.opt_state)
            params, opt_state = finite.keep_unless(good, new, old)
        return TrainState(state.step + 1, params, opt_state, state.frozen), metrics

    shardings = shardings_of(like)
    return jax.jit(
        train_step,
        in_shardings=(shardings, sharding.batch_sharding(mesh)),
        out_shardings=(shardings, None),
        donate_argnums=0,
    )
