"""`maps-vla inspect`."""

import dataclasses
from pathlib import Path
from typing import Literal

import maps_optax as mx
from octo_integration.common import limits
from octo_integration.common.limits import check_limits
from octo_integration.config import FinetuneConfig
from octo_integration.model.heads import HeadKind
from octo_integration.model.named import shapes_of
from octo_integration.state.described import following, model_of


@dataclasses.dataclass(frozen=True)
class Options:
    """Shows which tensor is held how strongly, before any training: module, layer, leaves, parameters, strength.

    maps-vla inspect --model tiny --lambda-max 3.2 --schedule linear
    maps-vla inspect --weights weights/mine
    """

    model: str | None = None
    """Name of the model's configuration: tiny, tiny_clip, small, nano, nano_8, mini, openvla or octo_small;
    None: the model of the weights, else tiny."""
    weights: str | None = None
    """What maps-vla import made, or a run that is finished."""
    head: HeadKind | None = None
    """Action head; None: that of the run that the weights are of, else the model's own."""
    lambda_max: float = 3.2
    """Strength at the first layer of the stack."""
    schedule: str = "linear"
    """How the strength falls along the stack: linear, cosine, constant, exponential or step; or module:function of a
    package of yours, (k, size) -> share of lambda_max at layer k = 1, ..., size."""
    variant: Literal["paper", "released"] = "paper"
    """paper: the formula, last layer 0; released: the authors' script."""

    def __post_init__(self) -> None:
        """Refuses a strength that is none."""
        check_limits(self, {"lambda_max": limits.AT_LEAST_0})


def run(config: Options) -> int:
    """Prints the table of strengths."""
    if config.weights is not None and not Path(config.weights).exists():
        raise FileNotFoundError(f"there are no weights {config.weights}; give what maps-vla import made, or a run.")
    run = following(FinetuneConfig("", model=config.model, weights=config.weights, head=config.head))
    shapes = shapes_of(model_of(run))
    print(mx.describe(mx.presets.vla(config.variant), shapes, config.lambda_max, config.schedule))
    return 0
