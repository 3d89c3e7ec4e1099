"""A model from the config.json of the checkpoints that its parts come from.

Only what our code computes can be said of it: the import then compares every field with the model that came of it
(`computation.check_computation`), and refuses rope scaling, sliding windows, gated towers and the like by name.
"""

import functools
from collections.abc import Mapping
from typing import Any

from octo_integration.model.config import LanguageConfig, TowerConfig, VLAConfig
from octo_integration.model.heads.regression import L1Config
from octo_integration.model.sizes import CLIP_L, DINOV2_L, PROMPT, SIGLIP_SO400M
from octo_integration.weights.computation import GELU, Field, family, pixels, said
from octo_integration.weights.hf import CONFIGS, Checkpoint
from octo_integration.weights.names import MODEL_TYPES

# What tells the families apart and no config.json says.
LIKE = {"dinov2": DINOV2_L, "siglip": SIGLIP_SO400M, "clip": CLIP_L}
IMAGE_SIZE = 224
INSTRUCTION_LENGTH = 32
LR = 5e-5  # as of `mini`
FUNCTIONS = {name: ours for ours, name in GELU.items()}


def model_from(sources: Mapping[str, Checkpoint], image_size: int | None, language_layers: int | None) -> VLAConfig:
    """The model of these towers and this language model, with an L1 head.

    Args:
      sources: module -> its opened checkpoint.
      image_size: in pixels; None: 224.
      language_layers: take only so many of the language model's blocks, the first; None: all.

    Raises:
      ValueError: a part is missing, there is no config.json, or a field has a value that our models cannot have.
    """
    if "language" not in sources or "t5" in sources:
        raise ValueError(
            "import: without --model the model is made of --language and one or more of --dinov2, --siglip and --clip; "
            "give those, or --model."
        )
    parts: dict[str, Any] = {module: _part(module, checkpoint) for module, checkpoint in sources.items()}
    if language_layers is not None:
        whole = parts["language"]
        parts["language"] = _made(
            sources["language"], vars(whole) | {"depth": language_layers, "of_depth": whole.depth}, LanguageConfig
        )
    return VLAConfig(
        **parts,
        image_size=IMAGE_SIZE if image_size is None else image_size,
        instruction_length=INSTRUCTION_LENGTH,
        action_dim=7,
        proprio_dim=7,
        chunk=8,
        head=L1Config(hidden=parts["language"].width),
        prompt=PROMPT,
        lr=LR,
    )


def _part(module: str, checkpoint: Checkpoint) -> TowerConfig | LanguageConfig:
    config = checkpoint.configs.get(CONFIGS[0], {})
    if config.get("model_type") not in MODEL_TYPES[module]:
        raise ValueError(
            f"{checkpoint.directory} has no {CONFIGS[0]} with a model_type ({' or '.join(MODEL_TYPES[module])}), which "
            "says what is computed; add it, or give --model."
        )
    inside, values, fields = family(config)
    read = functools.partial(_number, checkpoint, inside, values, fields)
    if module == "language":
        tied = config.get("tie_word_embeddings", False) is True
        if not tied and not any(name.endswith("lm_head.weight") for name in checkpoint.tensors):
            raise ValueError(
                f"{checkpoint.directory / CONFIGS[0]}: tie_word_embeddings is not true, but no lm_head.weight is "
                "there; give the config.json of these tensors."
            )
        made: dict[str, Any] = {
            "vocabulary": read("vocab_size"),
            "width": read("hidden_size"),
            "depth": read("num_hidden_layers"),
            "heads": read("num_attention_heads"),
            "kv_heads": read("num_key_value_heads"),
            "mlp": read("intermediate_size"),
            "qkv_bias": config["model_type"] == "qwen2",
            "rope_theta": read("rope_theta", float),
            "norm_eps": read("rms_norm_eps", float),
            "tied": tied,
        }
        return _made(checkpoint, made, LanguageConfig)
    like, depth = LIKE[module], read("num_hidden_layers")
    width = read("hidden_size")
    ratio = read("mlp_ratio", float) if module == "dinov2" else None
    return _made(
        checkpoint,
        {
            "patch": read("patch_size"),
            "width": width,
            "depth": depth,
            "heads": read("num_attention_heads"),
            "mlp": read("intermediate_size") if ratio is None else round(width * ratio),
            "cls_token": like.cls_token,
            "registers": read("num_register_tokens") if config["model_type"] == "dinov2_with_registers" else 0,
            "layer_scale": like.layer_scale,
            "gelu": _function(checkpoint, inside, said("hidden_act", values, fields)),
            "mean": _colours(checkpoint, "image_mean", like.mean),
            "std": _colours(checkpoint, "image_std", like.std),
            "norm_eps": read("layer_norm_eps", float),
            "pre_norm": like.pre_norm,
            "features": "penultimate" if depth > 1 else "last",
        },
        TowerConfig,
    )


def _made(checkpoint: Checkpoint, values: Mapping[str, Any], cls: Any) -> Any:
    """The configuration, whose own refusal of sizes gets the name of the file."""
    try:
        return cls(**values)
    except ValueError as error:
        raise ValueError(f"{checkpoint.directory / CONFIGS[0]}: {error}") from None


def _number(
    checkpoint: Checkpoint,
    inside: str,
    values: Mapping[str, Any],
    fields: tuple[Field, ...],
    name: str,
    kind: type = int,
) -> Any:
    value = said(name, values, fields)
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not (whole or (kind is float and isinstance(value, float))) or not value > 0:
        words = "a whole number" if kind is int else "a number"
        raise ValueError(
            f"{checkpoint.directory / CONFIGS[0]}: {inside}{name} is {value!r:.80}; it must be {words} above 0."
        )
    return kind(value)


def _function(checkpoint: Checkpoint, inside: str, name: Any) -> str:
    if name not in FUNCTIONS:
        raise ValueError(
            f"{checkpoint.directory / CONFIGS[0]}: {inside}hidden_act is {name!r:.80}; a tower computes with one of "
            f"{', '.join(FUNCTIONS)}."
        )
    return FUNCTIONS[name]


def _colours(checkpoint: Checkpoint, name: str, default: tuple[float, ...]) -> tuple[float, ...]:
    value = pixels(name, checkpoint.configs)
    if value is None:
        return default
    if not (isinstance(value, list) and len(value) == 3 and all(isinstance(x, (int, float)) for x in value)):
        raise ValueError(
            f"{checkpoint.directory}: {name} of the preprocessor is {value!r:.80}; it must be three numbers."
        )
    return tuple(map(float, value))
