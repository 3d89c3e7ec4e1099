"""Octo (linen): convolutional image tokenizers, T5 instruction encoder, block-wise transformer."""

from maps_optax._layers import LayerStack

_T5 = {
    r"task_tokenizers_\w+/hf_model/encoder/block/(\d+)/": "block",
    r"task_tokenizers_\w+/hf_model/shared/": "first",
    r"task_tokenizers_\w+/hf_model/encoder/final_layer_norm/": "last",
}
_FILM = r"observation_tokenizers_\w+/SmallStem\d+_\d+/(?:embedding|FilmConditioning_\d+)/"


def octo() -> LayerStack:
    """The stack of an Octo checkpoint: image tokenizers → T5 → projections and embeddings → transformer; heads free.

    The stem's convolutions are numbered layers, its last projection and FiLM close it. T5, absent from the debug
    model, comes second: it is pretrained on text and usually frozen. Projections into the transformer, position
    embeddings and readout embeddings are the bridge. `heads_*` are free, since fine-tuning to a new robot makes them
    anew; to keep a pretrained head, copy the stack with another `free`.
    """
    return LayerStack(
        {
            "vision": {
                r"observation_tokenizers_\w+/SmallStem\d+_\d+/(?:StdConv|GroupNorm)_(\d+)/": "block",
                _FILM: "last",
            },
            "language": _T5,
            "bridge": {r"(?:obs|task|readout)_\w+(?:_projection/|_pos_embedding$)": "first"},
            "transformer": {
                r"BlockTransformer_0/Transformer_0/encoderblock_(\d+)/": "block",
                r"BlockTransformer_0/Transformer_0/encoder_norm/": "last",
            },
        },
        free=(r"heads_\w+/",),
        optional=(r"heads_\w+/", *_T5),
    )
