"""What one method is to a run: a value that says all of it, so that nobody else asks which method it is."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import optax

import maps_optax as mx
from octo_integration.config import FinetuneConfig

Tree = Any


class Hold(NamedTuple):
    """What holds the weights of a run near theta0, and all that is told about it.

    Attributes:
      label: title of the run's panel in the figure of drifts.
      table: what a person reads before the run.
      slices: every tensor of the parameters (adapters merged into their kernels), each with the share of `lambda_max`
        that it is held with: the rows of the drift.
      lambda_max: strength at the first layer; 0 where nothing holds.
      before: the optimizer's first member, which sees the gradient.
      after: its last, which sees AdamW's step.
      anchored: the optimizer state holds theta0, which a checkpoint leaves out: it is in the weights file.
      measured: `mx.metrics` has something to say about the optimizer state.
      anchor_memory: where the state's theta0 is kept, as in `MapsConfig`.
    """

    label: str
    table: str
    slices: Sequence[mx.Slice]
    lambda_max: float = 0.0
    before: optax.GradientTransformation = optax.identity()
    after: optax.GradientTransformation = optax.identity()
    anchored: bool = False
    measured: bool = False
    anchor_memory: str = "device"


# (config, the model's layers, its parameters as arrays or shapes) -> Hold.
Holding: TypeAlias = Callable[[FinetuneConfig, mx.LayerStack, Tree], Hold]
