"""The optimizer: AdamW with clipping, a schedule, and what holds the pretrained weights."""

import functools
import re
from typing import Any, TypeAlias

import jax
import optax

import maps_optax as mx
from octo_integration.config import MapsConfig, OptimizerConfig

Tree = Any
Optimizer: TypeAlias = optax.GradientTransformationExtraArgs | optax.MultiSteps
# Weight decay is for matrices. Names decide, not ranks: nn.scan stacks the biases of a tower into a matrix.
DECAYED = ("kernel", "embedding")
# Where the first and last member of `make_optimizer`'s chain, which hold the weights, keep their state.
HOLD_PATH = re.compile(r"opt_state/(inner_opt_state/)?[03]/")
# Where Adam, the third, counts its updates.
ADAM = 2


def learning_rate(config: OptimizerConfig) -> optax.Schedule:
    """Linear warmup from 0 to the peak, then a cosine down to a tenth of it at the last step."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.lr,
        warmup_steps=config.warmup_steps,
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
