"""LoRA adapters in a stack of layers."""

import dataclasses

import maps_optax as mx


def with_adapters(layers: mx.LayerStack) -> mx.LayerStack:
    """The stack in which adapters, free in the presets, belong to the layer of their kernel."""
    return dataclasses.replace(
        layers,
        free=[pattern for pattern in layers.free if "lora" not in pattern],
        optional=[pattern for pattern in layers.optional if "lora" not in pattern],
    )
