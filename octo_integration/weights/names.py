"""Which tensor of a published checkpoint is which leaf of ours: one table per module and family of names."""

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

# same: reshaped. matrix: [out, in] transposed, its sides split into heads. conv: [out, in, h, w] to [h, w, in, out].
# qkv: the `part`th third of the rows, then as matrix (or same, of a bias). token: a class token, to which its position
# is added where `positions` has one. positions: of the patches, resampled where the grid is another one.
How = Literal["same", "matrix", "conv", "qkv", "token", "positions"]


class Rule(NamedTuple):
    """One leaf of a module and the tensor it is read from.

    Attributes:
      leaf: path within the module; under "blocks/" it stacks the tensors of all blocks.
      source: name of the tensor; "{i}" is the number of the block.
      how: from tensor to leaf.
      part: of a fused query-key-value tensor.
    """

    leaf: str
    source: str
    how: How = "same"
    part: int = 0


class Format(NamedTuple):
    """A family of names.

    Attributes:
      name: as provenance tells it.
      rules: of every leaf that a module of this kind can have.
      ignored: pattern of tensor names that no leaf needs -> why.
      copies: tensor -> the leaf that it repeats; one that the model has a leaf of its own for is no copy.
      antialias: positions are resampled so by what computes with these names.
      gelu: what computes with these names, where no JSON file says otherwise; None: its family's config.json says it.
    """

    name: str
    rules: tuple[Rule, ...]
    ignored: Mapping[str, str]
    copies: Mapping[str, str] = {}
    antialias: bool = True
    gelu: str | None = None


def _affine(leaf: str, source: str) -> Iterator[Rule]:
    yield Rule(f"{leaf}/scale", f"{source}.weight")
    yield Rule(f"{leaf}/bias", f"{source}.bias")


def _linear(leaf: str, source: str) -> Iterator[Rule]:
    yield Rule(f"{leaf}/kernel", f"{source}.weight", "matrix")
    yield Rule(f"{leaf}/bias", f"{source}.bias")


def _fused(source: str) -> Iterator[Rule]:
    for part, name in enumerate(("query", "key", "value")):
        yield Rule(f"blocks/attn/{name}/kernel", f"{source}.weight", "qkv", part)
        yield Rule(f"blocks/attn/{name}/bias", f"{source}.bias", "qkv", part)


def _attention(source: str, names: tuple[str, str, str, str]) -> Iterator[Rule]:
    for leaf, name in zip(("query", "key", "value", "out"), names):
        yield from _linear(f"blocks/attn/{leaf}", f"{source}.{name}")


def _patches(source: str) -> Iterator[Rule]:
    yield Rule("patch_embed/kernel", f"{source}.weight", "conv")
    yield Rule("patch_embed/bias", f"{source}.bias")


def _mlp(source: str) -> Iterator[Rule]:
    for name in ("fc1", "fc2"):
        yield from _linear(f"blocks/mlp/{name}", f"{source}.{name}")


def _timm(scale: str) -> tuple[Rule, ...]:
    """timm's vision transformers; `scale` names the LayerScale parameter, which Prismatic renames."""
    return (
        Rule("cls_token", "cls_token", "token"),
        Rule("register_tokens", "reg_token"),
        Rule("pos_embed", "pos_embed", "positions"),
        *_patches("patch_embed.proj"),
        *_affine("blocks/norm1", "blocks.{i}.norm1"),
        *_fused("blocks.{i}.attn.qkv"),
        *_linear("blocks/attn/out", "blocks.{i}.attn.proj"),
        Rule("blocks/ls1", f"blocks.{{i}}.ls1.{scale}"),
        *_affine("blocks/norm2", "blocks.{i}.norm2"),
        *_mlp("blocks.{i}.mlp"),
        Rule("blocks/ls2", f"blocks.{{i}}.ls2.{scale}"),
        *_affine("norm", "norm"),
    )


def _dinov2(attention: str, names: tuple[str, str, str, str]) -> tuple[Rule, ...]:
    layer = "encoder.layer.{i}"
    return (
        Rule("cls_token", "embeddings.cls_token", "token"),
        Rule("register_tokens", "embeddings.register_tokens"),
        Rule("pos_embed", "embeddings.position_embeddings", "positions"),
        *_patches("embeddings.patch_embeddings.projection"),
        *_affine("blocks/norm1", f"{layer}.norm1"),
        *_attention(f"{layer}.{attention}", names),
        Rule("blocks/ls1", f"{layer}.layer_scale1.lambda1"),
        *_affine("blocks/norm2", f"{layer}.norm2"),
        *_mlp(f"{layer}.mlp"),
        Rule("blocks/ls2", f"{layer}.layer_scale2.lambda1"),
        *_affine("norm", "layernorm"),
    )


# SigLIP and CLIP; transformers 4 puts "vision_model." before each name, which is found as a prefix.
_HF_VISION = (
    Rule("cls_token", "embeddings.class_embedding", "token"),
    Rule("pos_embed", "embeddings.position_embedding.weight", "positions"),
    *_patches("embeddings.patch_embedding"),
    *_affine("pre_norm", "pre_layrnorm"),  # so misspelt there
    *_affine("blocks/norm1", "encoder.layers.{i}.layer_norm1"),
    *_attention("encoder.layers.{i}.self_attn", ("q_proj", "k_proj", "v_proj", "out_proj")),
    *_affine("blocks/norm2", "encoder.layers.{i}.layer_norm2"),
    *_mlp("encoder.layers.{i}.mlp"),
    *_affine("norm", "post_layernorm"),
)


def _decoder(prefix: str) -> tuple[Rule, ...]:
    """Qwen2 and Llama; a text tower that was saved without its head has no prefix."""
    layer = f"{prefix}layers.{{i}}"
    return (
        Rule("embed/embedding", f"{prefix}embed_tokens.weight"),
        Rule("blocks/norm1/scale", f"{layer}.input_layernorm.weight"),
        *_attention(f"{layer}.self_attn", ("q_proj", "k_proj", "v_proj", "o_proj")),
        Rule("blocks/norm2/scale", f"{layer}.post_attention_layernorm.weight"),
        *(Rule(f"blocks/mlp/{n}/kernel", f"{layer}.mlp.{n}_proj.weight", "matrix") for n in ("gate", "up", "down")),
        Rule("norm/scale", f"{prefix}norm.weight"),
        Rule("lm_head/kernel", "lm_head.weight", "matrix"),
    )


def _t5(prefix: str, embedding: str) -> tuple[Rule, ...]:
    """T5's encoder, within the whole or (without a prefix) alone."""
    layer = f"{prefix}block.{{i}}.layer"
    return (
        Rule("embed/embedding", embedding),
        Rule("relative_bias/embedding", f"{prefix}block.0.layer.0.SelfAttention.relative_attention_bias.weight"),
        Rule("blocks/norm1/scale", f"{layer}.0.layer_norm.weight"),
        *(
            Rule(f"blocks/attn/{leaf}/kernel", f"{layer}.0.SelfAttention.{name}.weight", "matrix")
            for leaf, name in zip(("query", "key", "value", "out"), "qkvo")
        ),
        Rule("blocks/norm2/scale", f"{layer}.1.layer_norm.weight"),
        *(Rule(f"blocks/mlp/{n}/kernel", f"{layer}.1.DenseReluDense.{n}.weight", "matrix") for n in ("wi", "wo")),
        Rule("norm/scale", f"{prefix}final_layer_norm.weight"),
    )


_BRIDGE = tuple(rule for name in ("fc1", "fc2", "fc3") for rule in _linear(name, name))
# As layers of torch.nn.Sequential, with the activations between.
_BRIDGE_SEQUENTIAL = tuple(
    rule for name, at in (("fc1", "0"), ("fc2", "2"), ("fc3", "4")) for rule in _linear(name, at)
)

_POOLING = "the pooling head is not used"
_TEXT = "the text tower is not used"
_MASK_TOKEN = {r"(.*\.)?mask_token": "stands for masked patches, in pretraining only"}
_TIMM_IGNORED = {r"attn_pool\..*": _POOLING, **_MASK_TOKEN}
_VISION_IGNORED = {
    r"head\..*": _POOLING,
    r"(.*\.)?position_ids": "counts from 0",
}
# Of whole two-tower checkpoints, beside the vision tower.
OUTSIDE = {
    r"(.*\.)?text_model\..*": _TEXT,
    r"(.*\.)?(text|visual)_projection\..*": "the joint embedding is not used",
    r"(.*\.)?logit_(scale|bias)": "the contrastive loss is not used",
}
_DECODER_IGNORED = {r".*rotary_emb\.inv_freq": "computed"}
_TIED = {"lm_head.weight": "embed/embedding"}
_T5_IGNORED = {r"decoder\..*": "only the encoder is used", r"lm_head\.weight": "only the encoder is used"}
_SHARED = {"shared.weight": "embed/embedding"}

_DINOV2_4 = _dinov2("attention", ("attention.query", "attention.key", "attention.value", "output.dense"))
_DINOV2_5 = _dinov2("attention", ("q_proj", "k_proj", "v_proj", "o_proj"))


def _unregistered(rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    return tuple(rule for rule in rules if rule.leaf != "register_tokens")


# Of each module; the one of which a checkpoint has most decides, of equals the first. transformers antialiases the
# positions of DINOv2 with registers only, timm (and Prismatic, which takes its towers from there) those of all. timm's
# SigLIP of 400M parameters has the exact GELU, though it learnt with the tanh form, which transformers keeps; what was
# trained on from there (MiniVLA, OpenVLA) has learnt with the exact one.
FORMATS: dict[str, tuple[Format, ...]] = {
    "dinov2": (
        Format("timm", _timm("gamma"), _TIMM_IGNORED, gelu="exact"),
        Format("prismatic", _timm("scale_factor"), _TIMM_IGNORED, gelu="exact"),
        Format("transformers 4, no registers", _unregistered(_DINOV2_4), _MASK_TOKEN, antialias=False),
        Format("transformers 5, no registers", _unregistered(_DINOV2_5), _MASK_TOKEN, antialias=False),
        Format("transformers 4", _DINOV2_4, _MASK_TOKEN),
        Format("transformers 5", _DINOV2_5, _MASK_TOKEN),
    ),
    "siglip": (
        Format("timm", _timm("gamma"), _TIMM_IGNORED, gelu="exact"),
        Format("transformers", _HF_VISION, _VISION_IGNORED, antialias=False, gelu="tanh"),
    ),
    "clip": (Format("transformers", _HF_VISION, _VISION_IGNORED, antialias=False),),
    "t5": (
        Format("transformers", _t5("encoder.", "encoder.embed_tokens.weight"), _T5_IGNORED, _SHARED),
        Format("transformers, shared", _t5("encoder.", "shared.weight"), _T5_IGNORED),
        Format("transformers, encoder alone", _t5("", "embed_tokens.weight"), {}),
    ),
    "bridge": (Format("prismatic", _BRIDGE, {}), Format("prismatic, sequential", _BRIDGE_SEQUENTIAL, {})),
    "language": (
        Format("transformers", _decoder("model."), _DECODER_IGNORED, _TIED),
        Format("transformers, no head", _decoder(""), _DECODER_IGNORED, _TIED),
    ),
}
# Where the modules of a Prismatic checkpoint (MiniVLA, OpenVLA) are.
PRISMATIC = {
    "dinov2": "vision_backbone.featurizer.",
    "siglip": "vision_backbone.fused_featurizer.",
    "bridge": "projector.",
    "language": "language_model.",
}
# ... and of one that Prismatic's own training saved (MiniVLA's release), as safetensors.
PRISMATIC_TRAINED = {
    "dinov2": "vision_backbone.dino_featurizer.",
    "siglip": "vision_backbone.siglip_featurizer.",
    "bridge": "projector.projector.",
    "language": "llm_backbone.llm.",
}
# config.json's model_type of the checkpoints that hold a module.
MODEL_TYPES: dict[str, tuple[str, ...]] = {
    "dinov2": ("dinov2", "dinov2_with_registers"),
    "siglip": ("siglip", "siglip_vision_model"),
    "clip": ("clip", "clip_vision_model"),
    "t5": ("t5",),
    "language": ("qwen2", "llama"),
}
