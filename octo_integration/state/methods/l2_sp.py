"""L2-SP: a pull towards theta0 in the gradient, of one strength everywhere."""

import functools

import maps_optax as mx
from octo_integration.config import FinetuneConfig
from octo_integration.state.methods.common import Hold, Tree


def full(config: FinetuneConfig, layers: mx.LayerStack, shapes: Tree) -> Hold:
    """L2-SP on every pretrained tensor."""
    strength = config.maps.lambda_max
    return Hold(
        label=f"L2-SP, strength {strength:g}",
        table=mx.describe(layers, shapes, strength, "constant"),
        slices=mx.slices(layers, shapes, "constant"),
        lambda_max=strength,
        before=mx.l2_sp(functools.partial(_uniform, layers, strength), anchor_dtype=config.maps.anchor_dtype),
        anchored=True,
    )


def _uniform(layers: mx.LayerStack, strength: float, params: Tree) -> Tree:
    return mx.strengths(layers, params, strength, "constant")
