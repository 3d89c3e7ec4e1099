"""MAPS for Optax: fine-tune a pretrained model while each layer stays near its initial weights.

    import optax, maps_optax as mx

    tx = mx.chain(optax.adam(5e-5), mx.maps(mx.presets.prismatic(), lambda_max=3.2))

The method is Module-Wise Proximity Scheduling, arXiv 2511.19878.
"""

from maps_optax import presets
from maps_optax._adapt import AdaptStats, drift_budget, hypergradient
from maps_optax._anchor import (
    DetachedAnchor,
    L2SPState,
    SPDState,
    attach_anchor,
    detach_anchor,
    set_anchor,
)
from maps_optax._baselines import interpolate, l2_sp
from maps_optax._gradient import chain
from maps_optax._infer import infer_layers
from maps_optax._inspect import Slice, describe, metrics, slices
from maps_optax._layers import LayerStack
from maps_optax._lora import lora_spd
from maps_optax._maps import maps
from maps_optax._spd import spd
from maps_optax._strength import strengths

__version__ = "0.1.0"

__all__ = [
    "AdaptStats",
    "DetachedAnchor",
    "L2SPState",
    "LayerStack",
    "SPDState",
    "Slice",
    "attach_anchor",
    "chain",
    "describe",
    "detach_anchor",
    "drift_budget",
    "hypergradient",
    "infer_layers",
    "interpolate",
    "l2_sp",
    "lora_spd",
    "maps",
    "metrics",
    "presets",
    "set_anchor",
    "slices",
    "spd",
    "strengths",
]
