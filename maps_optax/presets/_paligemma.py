"""PaliGemma and SigLIP: big_vision's trees, scanned or not, and the names of transformers."""

from maps_optax._layers import LayerStack

_MODULES = {
    "siglip": {
        r"(?:img/)?(?:embedding/|pos_embedding$)": "first",
        r"(?:img/)?Transformer/encoderblock_(\d+)/": "block",
        r"(?:img/)?Transformer/encoderblock/": "stacked",
        r"(?:img/)?(?:Transformer/encoder_norm|MAPHead_0)/": "last",
        r"vision_tower/(?:vision_model/)?embeddings/": "first",
        r"vision_tower/(?:vision_model/)?encoder/layers/(\d+)/": "block",
        r"vision_tower/(?:vision_model/)?post_layernorm/": "last",
    },
    "bridge": {r"(?:(?:img/)?head|multi_modal_projector)/": "first"},
    "language": {
        r"llm/embedder/": "first",
        r"llm/layers/(\d+)/": "block",
        r"llm/layers/": "stacked",
        r"llm/final_norm/": "last",
        r"language_model/(?:model/)?embed_tokens/": "first",
        r"language_model/(?:model/)?layers/(\d+)/": "block",
        r"language_model/(?:model/)?norm/": "last",
        r"(?:language_model/)?lm_head/": "last",
    },
}
_LORA = r".*\b(?:\w+_)?lora_"


def paligemma() -> LayerStack:
    """The stack of PaliGemma: SigLIP → projection → Gemma, or of a SigLIP tower on its own; LoRA adapters free.

    Takes big_vision's trees (``img``, ``llm``; blocks stacked along axis 0 or numbered) and the parameter names of
    transformers. Every pattern may match nothing, as each belongs to one of these forms; a leaf that none matches is
    still an error.
    """
    patterns = [pattern for rules in _MODULES.values() for pattern in rules]
    return LayerStack(_MODULES, free=(_LORA,), optional=(*patterns, _LORA))
