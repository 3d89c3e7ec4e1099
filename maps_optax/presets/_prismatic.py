"""Prismatic VLAs: MiniVLA and OpenVLA, by their PyTorch parameter names (dots or slashes)."""

from maps_optax._layers import LayerStack

_HEADS = (r"action_head/", r"proprio_projector/", r".*action_queries")
_LORA = r".*\blora_"


def prismatic(variant: str = "paper") -> LayerStack:
    """The stack of a Prismatic VLA: DINOv2 → SigLIP → projector → language model.

    Args:
      variant: ``"paper"`` follows the formula: patch, position, class and register embeddings sit in a tower's first
        layer, its final norm (and SigLIP's attention pooling) in its last, the projector is one layer, token embeddings
        open the language model, final norm and lm_head close it, and the last layer's λ is exactly 0; LoRA adapters
        are free. ``"released"`` gives the λ of the released training script under ``"linear"`` and ``"cosine"``:
        only numbered blocks are layers, everything else shares one layer behind them, biases are free, LoRA adapters
        follow their block, and a phantom layer keeps λ from 0.

    Raises:
      ValueError: another variant.

    Examples:
      >>> import maps_optax as mx, numpy as np
      >>> names = ["vision_backbone.featurizer.blocks.0.attn.qkv.weight", "projector.fc1.weight",
      ...          "vision_backbone.fused_featurizer.blocks.0.attn.qkv.weight",
      ...          "language_model.model.layers.0.mlp.up_proj.weight"]
      >>> params = {name: np.zeros((2, 2)) for name in names}
      >>> list(mx.strengths(mx.presets.prismatic("released"), params, lambda_max=1.0).values())
      [0.5, 0.25, 1.0, 0.75]
    """
    if variant == "paper":
        return LayerStack(
            {
                "dinov2": {
                    r"featurizer/blocks/(\d+)/": "block",
                    r"featurizer/norm/": "last",
                    r"featurizer/": "first",
                },
                "siglip": {
                    r"fused_featurizer/blocks/(\d+)/": "block",
                    r"fused_featurizer/(?:norm|attn_pool)/": "last",
                    r"fused_featurizer/": "first",
                },
                "bridge": {r"projector/": "first"},
                "language": {
                    r"language_model/model/layers/(\d+)/": "block",
                    r"language_model/model/embed_tokens/": "first",
                    r"language_model/(?:model/norm|lm_head)/": "last",
                },
            },
            free=(*_HEADS, _LORA),
            optional=(
                *_HEADS,
                _LORA,
                r"featurizer/norm/",
                r"featurizer/",
                r"fused_featurizer/(?:norm|attn_pool)/",
                r"fused_featurizer/",
                r"language_model/model/embed_tokens/",
                r"language_model/(?:model/norm|lm_head)/",
            ),
        )
    if variant == "released":
        rest = r"(?:vision_backbone|projector|language_model)/"
        bias = r".*[^/]/bias$"
        return LayerStack(
            {
                "dinov2": {r"featurizer/blocks/(\d+)/": "block"},
                "siglip": {r"fused_featurizer/blocks/(\d+)/": "block"},
                "language": {r"language_model/model/layers/(\d+)/": "block"},
                "unnumbered": {rest: "first"},
            },
            free=(*_HEADS, bias),
            optional=(*_HEADS, bias, rest),
            tail=1,
        )
    raise ValueError(f"presets.prismatic: variant is {variant!r}; use 'paper' or 'released'.")
