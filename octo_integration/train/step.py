"""One training step: the action head's loss, AdamW with clipping and MAPS, jitted on a mesh.

The step is one jitted function whose state is donated, so parameters, moments and anchors exist once. It returns
device scalars and never waits for the device; the caller fetches them when it logs.
"""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

import maps_optax as mx
from octo_integration.config import MapsConfig, NanPolicy, OptimizerConfig
from octo_integration.state import lora, sharding
from octo_integration.train import finite

Tree = Any
Batch = Mapping[str, Any]
Metrics = dict[str, jax.Array]
# (params, device batch, key of what is drawn) -> (f32[], what the action head logs).
Loss: TypeAlias = Callable[[Tree, Batch, jax.Array], tuple[jax.Array, Metrics]]
Optimizer: TypeAlias = optax.GradientTransformationExtraArgs | optax.MultiSteps

# Weight decay is for matrices. Names decide, not ranks: nn.scan stacks the biases of a tower into a matrix.
DECAYED = ("kernel", "embedding")

# Where the first and last member of `make_optimizer`'s chain, which hold the weights, keep their state.
HOLD_PATH = re.compile(r"opt_state/(inner_opt_state/)?[03]/")


# Where Adam, the third, counts its updates.
ADAM = 2


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


def learning_rate(config: OptimizerConfig) -> optax.Schedule:
    """Linear warmup from 0 to the peak, then a cosine down to a tenth of it at the last step."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.lr,
        warmup_steps=config.warmup,
        decay_steps=config.steps,
        end_value=0.1 * config.lr,
    )


def make_optimizer(
    optimizer: OptimizerConfig,
    maps: MapsConfig,
    layers: Any,
    hold: optax.GradientTransformation | None = None,
) -> Optimizer:
    """clip -> AdamW -> what holds the weights, and gradient accumulation around it all.

    `mx.chain` hands the raw gradient to MAPS and sits inside `optax.MultiSteps`, which gives it the accumulated one.
    The chain has four members whatever the method, so that checkpoints of all methods differ only in HOLD_PATH.

    Args:
      layers: the model's LayerStack (or what `mx.maps` takes in its place).
      hold: of `lora.hold`: takes the place of MAPS where it holds adapters.
    """
    b1, b2 = optimizer.betas
    adamw = optax.adamw(
        learning_rate(optimizer),
        b1=b1,
        b2=b2,
        weight_decay=optimizer.weight_decay,
        mask=decay_mask,
    )
    tx = mx.chain(
        _penalty(maps, layers),
        optax.clip_by_global_norm(optimizer.clip),
        adamw,
        _projection(maps, layers, b1) if hold is None else hold,
    )
    return tx if optimizer.accumulate == 1 else optax.MultiSteps(tx, optimizer.accumulate)


def _penalty(config: MapsConfig, layers: Any) -> optax.GradientTransformation:
    if config.method != "l2_sp":
        return optax.identity()
    strength = functools.partial(_uniform, layers, config.lambda_max)
    return mx.l2_sp(strength, anchor_dtype=config.anchor_dtype)


def _uniform(layers: Any, strength: float, params: Tree) -> Tree:
    return mx.strengths(layers, params, strength, "constant")


def _projection(config: MapsConfig, layers: Any, b1: float) -> optax.GradientTransformation:
    if config.method != "maps":
        return optax.identity()
    return mx.maps(
        layers,
        config.lambda_max,
        config.schedule,
        anchor_dtype=config.anchor_dtype,
        anchor_memory_kind=None if config.anchor_memory == "device" else config.anchor_memory,
        max_pull=config.max_pull,
        criterion=config.criterion,
        b1=b1,
    )


def decay_mask(params: Tree) -> Tree:
    """True where weight decay applies: kernels and embeddings."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in DECAYED, params)


def batches_applied(opt_state: Tree, accumulate: int) -> int:
    """How many batches went into a state of `make_optimizer`; those that were skipped did not."""
    if accumulate > 1:
        return int(opt_state.gradient_step) * accumulate + int(opt_state.mini_step)
    return int(opt_state[ADAM][0].count)


def make_loss(model: nn.Module) -> Loss:
    """The model's own loss on a device batch; the precision of the pass is the model's too."""

    def loss(params: Tree, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        value: Any = model.apply({"params": params}, batch, key, method="loss")
        return value

    return loss


def abstract_state(params: Tree, tx: Optimizer, mesh: Mesh, min_size: int, anchor_memory: str = "device") -> TrainState:
    """The state's shapes and shardings as `jax.ShapeDtypeStruct`s; nothing is computed.

    Args:
      params: arrays or shapes.
      min_size: see `sharding.param_shardings`.
      anchor_memory: of `MapsConfig`; where anchors are placed.
    """
    shapes = jax.eval_shape(functools.partial(_create, tx), params)
    params_at = sharding.param_shardings(shapes.params, mesh, min_size)
    frozen_at = sharding.param_shardings(shapes.frozen, mesh, min_size)
    state_at = sharding.opt_state_shardings(tx, shapes.opt_state, params_at, mesh)
    if anchor_memory != "device" and not shapes.frozen:  # anchors of adapters are small, and stay on the device
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
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
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


def to_device_form(batch: Batch, tokenize: Callable[[list[str]], tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """A reader's batch, with or without actions, as the jitted functions take it: instructions become tokens.

    Of a missing instruction (task/pad_mask_dict/instruction is False) no token is left in the mask.
    """
    task = dict(batch["task"])
    tokens, mask = tokenize([str(text) for text in task.pop("instruction")])
    if "instruction" in task.get("pad_mask_dict", {}):
        mask = mask & task["pad_mask_dict"]["instruction"][:, None]
    actions = {name: batch[name] for name in ("action", "action_pad_mask") if name in batch}
    return {"observation": dict(batch["observation"]), "task": {**task, "tokens": tokens, "mask": mask}, **actions}
