"""The optimizer: AdamW with clipping, a schedule, and what holds the pretrained weights."""

import re
from typing import Any, TypeAlias

import jax
import optax

import maps_optax as mx
from octo_integration.config import FinetuneConfig
from octo_integration.state.described import model_of
from octo_integration.state.methods.common import Hold

Tree = Any
Optimizer: TypeAlias = optax.GradientTransformationExtraArgs | optax.MultiSteps
# Weight decay is for matrices. Names decide, not ranks: nn.scan stacks the biases of a tower into a matrix.
DECAYED = ("kernel", "embedding")
# Where the first and last member of `make_optimizer`'s chain, which hold the weights, keep their state.
HOLD_PATH = re.compile(r"opt_state/(inner_opt_state/)?[03]/")
# Where Adam, the third, counts its updates.
ADAM = 2


def peak_rate(config: FinetuneConfig) -> float:
    """The peak learning rate: the run's, or its model's own.

    Raises:
      ValueError: no such model; names those that there are.
    """
    return model_of(config).lr if config.optimizer.lr is None else config.optimizer.lr


def learning_rate(config: FinetuneConfig) -> optax.Schedule:
    """Linear warmup from 0 to the peak, then a cosine down to a tenth of it at the last step."""
    peak = peak_rate(config)
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=peak,
        warmup_steps=config.optimizer.warmup_steps,
        decay_steps=config.optimizer.steps,
        end_value=0.1 * peak,
    )


def make_optimizer(config: FinetuneConfig, hold: Hold) -> Optimizer:
    """clip -> AdamW, between the two members of what holds the weights, and gradient accumulation around it all.

    `mx.chain` hands the raw gradient to MAPS and sits inside `optax.MultiSteps`, which gives it the accumulated one.
    The chain has four members whatever the method, so that checkpoints of all methods differ only in HOLD_PATH.
    """
    optimizer = config.optimizer
    b1, b2 = optimizer.betas
    adamw = optax.adamw(
        learning_rate(config),
        b1=b1,
        b2=b2,
        weight_decay=optimizer.weight_decay,
        mask=decay_mask,
    )
    tx = mx.chain(hold.before, optax.clip_by_global_norm(optimizer.clip), adamw, hold.after)
    return tx if optimizer.accumulate == 1 else optax.MultiSteps(tx, optimizer.accumulate)


def decay_mask(params: Tree) -> Tree:
    """True where weight decay applies: kernels and embeddings."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in DECAYED, params)


def batches_applied(opt_state: Tree, accumulate: int) -> int:
    """How many batches went into a state of `make_optimizer`; those that were skipped did not."""
    if accumulate > 1:
        return int(opt_state.gradient_step) * accumulate + int(opt_state.mini_step)
    return int(opt_state[ADAM][0].count)
