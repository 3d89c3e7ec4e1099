"""openpi: π0, π0.5, π0-FAST and their LoRA variants (NNX state with a scanned PaliGemma)."""

from maps_optax._layers import LayerStack

_IMG = r"PaliGemma/img/"
_LLM = r"PaliGemma/llm/"
_FREE = (
    r".*\bPaliGemma/llm/(?:.*/)?\w+_1(?:/|$)",  # the action expert; SigLIP's LayerNorm_1 and Dense_1 are not under llm
    r".*\b(?:\w+_)?lora_[ab]$",
    r"(?:state_proj|action_in_proj|action_out_proj|(?:action_)?time_mlp_(?:in|out))/",
)
_LANGUAGE = {
    _LLM + r"embedder/": "first",
    _LLM + r"layers/": "stacked",
    _LLM + r"final_norm/": "last",
}


def openpi() -> LayerStack:
    """The stack of an openpi policy: SigLIP → its head (the bridge) → Gemma; action expert, LoRA and projections free.

    `nn.scan` stacks the blocks of both towers along axis 0, so their leaves get one λ per slice. Where a LoRA config
    freezes Gemma, its frozen leaves never reach the optimizer, but the adapters still tell how deep it is: SigLIP
    keeps the λ that it has in full fine-tuning.
    """
    return LayerStack(
        {
            "siglip": {
                _IMG + r"(?:embedding/|pos_embedding$)": "first",
                _IMG + r"Transformer/encoderblock/": "stacked",
                _IMG + r"Transformer/encoder_norm/": "last",
            },
            "bridge": {_IMG + r"head/": "first"},
            "language": _LANGUAGE,
        },
        free=_FREE,
        optional=(*_FREE, *_LANGUAGE),
    )
