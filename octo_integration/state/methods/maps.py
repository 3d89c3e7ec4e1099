"""MAPS: a projection behind AdamW's step, of a strength that falls along the stack."""

import maps_optax as mx
from octo_integration.config import FinetuneConfig, MapsConfig
from octo_integration.state.methods.common import Hold, Tree


def full(config: FinetuneConfig, layers: mx.LayerStack, shapes: Tree) -> Hold:
    """MAPS on every pretrained tensor."""
    maps = config.maps
    return Hold(
        label=label(maps),
        table=mx.describe(layers, shapes, maps.lambda_max, maps.schedule),
        slices=mx.slices(layers, shapes, maps.schedule),
        lambda_max=maps.lambda_max,
        after=mx.maps(
            layers,
            maps.lambda_max,
            maps.schedule,
            anchor_dtype=maps.anchor_dtype,
            anchor_memory_kind=None if maps.anchor_memory == "device" else maps.anchor_memory,
            max_pull=maps.max_pull,
            criterion=maps.criterion,
            b1=config.optimizer.betas[0],
        ),
        anchored=True,
        measured=True,
        anchor_memory=maps.anchor_memory,
    )


def label(maps: MapsConfig) -> str:
    """The title of a panel."""
    return f"MAPS, {maps.schedule}, λmax {maps.lambda_max:g}"
