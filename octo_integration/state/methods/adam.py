"""Nothing holds the weights."""

import maps_optax as mx
from octo_integration.config import FinetuneConfig
from octo_integration.state.methods.common import Hold, Tree


def full(config: FinetuneConfig, layers: mx.LayerStack, shapes: Tree) -> Hold:
    """AdamW alone."""
    return Hold("Adam", "plain AdamW: nothing holds the pretrained weights", mx.slices(layers, shapes, "constant"))
