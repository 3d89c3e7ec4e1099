"""What a checkpoint's JSON files say is computed with its tensors, against what our model computes.

Tensors tell sizes, but not the number of heads, the activation, epsilons or the rotary base. A field that a config.json
leaves out has the value that its family gives it in transformers. Fields that only matter in training (dropout, initial
values of LayerScale), bound inputs (max_position_embeddings) or that positions are resampled from (image_size) decide
nothing and are not read.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from octo_integration.model.config import TOWERS
from octo_integration.model.t5 import NORM_EPS
from octo_integration.weights.convert import Plan, equal
from octo_integration.weights.hf import CONFIGS, Checkpoint
from octo_integration.weights.names import MODEL_TYPES

Config = Mapping[str, Any]
ROUNDED = 1e-6  # relative, of a number that went through float32

# Of our configurations -> as transformers calls it; other names of the same function.
GELU: Mapping[str, str] = {"exact": "gelu", "tanh": "gelu_pytorch_tanh", "quick": "quick_gelu"}
SAME_FUNCTION = {
    "gelu_python": "gelu",
    **dict.fromkeys(("gelu_python_tanh", "gelu_new", "gelu_fast", "gelu_accurate", "gelu_tanh"), "gelu_pytorch_tanh"),
    "swish": "silu",
}


class Field(NamedTuple):
    """One thing that a config.json decides.

    Attributes:
      names: its spellings, old and new; "a.b" is b within a. All that are there must agree with ours.
      ours: of our module's configuration, the value that it computes with.
      default: the value where no spelling is there, or a function of the config.json; None: nothing to compare.
      means: of a value in the file, the one that it stands for.
    """

    names: tuple[str, ...]
    ours: Callable[[Any], Any]
    default: Any = None
    means: Callable[[Any], Any] = lambda value: value


def check_computation(module: str, ours: Any, checkpoint: Checkpoint, prismatic: bool = False) -> None:
    """Compares what a checkpoint's JSON files say of a module with its configuration; without such files, nothing.

    Args:
      module: its name in our tree.
      ours: its TowerConfig, T5Config or LanguageConfig.
      prismatic: the checkpoint is a whole Prismatic one, whose `text_config` leaves out what training took from the
        language model that it started from: what is not there is not compared.

    Raises:
      ValueError: they differ; names file, fields and values.
    """
    for file, inside, values, fields in _parts(module, checkpoint.configs, prismatic):
        told = [text for field in fields for text in _differences(field, values, ours, inside)]
        if told:
            raise ValueError(f"{checkpoint.directory / file} does not fit {module} of the model: {'; '.join(told)}.")


def check_names(ours: Any, plan: Plan, checkpoint: Checkpoint) -> None:
    """Compares what the tensors' names say of a tower's activation with its configuration, where no file says it.

    Raises:
      ValueError: they differ.
    """
    config = checkpoint.configs.get("config.json", {})
    if plan.format.gelu in (None, ours.gelu) or any(_find(config, name) is not None for name in _ACTIVATIONS):
        return
    raise ValueError(
        f"{checkpoint.directory} does not fit {plan.module} of the model: {plan.format.name} names mean "
        f"{GELU[plan.format.gelu]!r} (the model computes with {GELU[ours.gelu]!r}); give a checkpoint of that kind."
    )


def check_tied(plan: Plan, checkpoint: Checkpoint, prismatic: bool = False) -> None:
    """Compares what config.json says of a language model's head with its tensors; without such a file, nothing.

    Raises:
      ValueError: it is said to be the token embedding and is another tensor, or to be its own and is not there.
    """
    config, inside, name = checkpoint.configs.get("config.json", {}), "", "tie_word_embeddings"
    if prismatic:
        config, inside = _object(config, "text_config"), "text_config."
    said = config.get(name)
    tied = False if said is None and config.get("model_type") in FAMILIES and not prismatic else said
    embedding, head = (plan.prefix + x for x in (plan.rules["embed/embedding"].source, "lm_head.weight"))
    where, there = f"{checkpoint.directory / 'config.json'}: {inside}{name}", head in checkpoint.tensors
    if tied not in (None, True, False):
        raise ValueError(f"{where} is {tied!r:.80}; it must be true or false.")
    if tied and there and not equal(head, embedding, checkpoint):
        raise ValueError(f"{where} is True, but {head} differs from {embedding}; give the config.json of these.")
    if tied is False and not there:
        words = "absent, which means False" if said is None else "False"
        raise ValueError(f"{where} is {words}, but there is no {head}; give the config.json of these.")


def _parts(
    module: str, configs: Mapping[str, Config], prismatic: bool
) -> Iterator[tuple[str, str, Config, tuple[Field, ...]]]:
    """(file, where in it, what stands there, what it decides of the module)."""
    main, *processors = CONFIGS
    config = configs.get(main, {})
    yield main, "", config, (_QUANTISED,)
    if prismatic:
        if module == "language":
            text = _object(config, "text_config")
            yield main, "text_config.", text, _stated(FAMILIES.get(str(text.get("model_type")), _LANGUAGE))
        yield main, "", config, _PRISMATIC.get(module, ())
        return
    if config.get("model_type") is not None:
        yield main, *family(config)
    elif "architecture" in config:
        yield main, "", config, _TIMM
    else:  # of no family, so without its defaults
        yield main, "", config, _stated(FAMILIES[MODEL_TYPES[module][-1]])
    if module in TOWERS:
        before, within = (configs.get(file, {}) for file in processors)
        yield processors[0], "", before, _PIXELS
        yield processors[1], "image_processor.", _object(within, "image_processor"), _PIXELS


def family(config: Config) -> tuple[str, Config, tuple[Field, ...]]:
    """Of a config.json with a model_type of MODEL_TYPES: where in it, what stands there, what it decides."""
    kind = config["model_type"]
    if kind not in NESTED:
        return "", config, FAMILIES[kind]
    # The vision tower of a whole model; the first of these objects alone decides.
    inside = next((name for name in NESTED[kind] if config.get(name) is not None), NESTED[kind][0])
    return f"{inside}.", _object(config, inside), FAMILIES[kind]


def said(name: str, values: Config, fields: tuple[Field, ...]) -> Any:
    """What a config.json says of a field, in whichever spelling and as the number it stands for, or its default."""
    field = next(field for field in fields if name in field.names)
    told = next((value for spelling in field.names if (value := _find(values, spelling)) is not None), None)
    if told is None:
        told = field.default(values) if callable(field.default) else field.default
    return field.means(told)


def pixels(name: str, configs: Mapping[str, Config]) -> Any:
    """What the files of a preprocessor say of a field of the images; None: nothing."""
    before, within = (configs.get(file, {}) for file in CONFIGS[1:])
    return _find(before, name) or _find(_object(within, "image_processor"), name)


def _stated(fields: tuple[Field, ...]) -> tuple[Field, ...]:
    """Of which only what is there is compared."""
    return tuple(field._replace(default=None) for field in fields)


def _object(config: Config, name: str) -> Config:
    value = config.get(name)
    return value if isinstance(value, dict) else {}


def _differences(field: Field, values: Config, ours: Any, inside: str) -> Iterator[str]:
    wanted = field.ours(ours)
    told = {name: value for name in field.names if (value := _find(values, name)) is not None}
    words = "is"
    if not told and field.default is not None:
        told = {field.names[0]: field.default(values) if callable(field.default) else field.default}
        words = "is absent, which means"
    for name, value in told.items():
        if not _same(field.means(value), wanted):
            yield f"{inside}{name} {words} {value!r:.80} (the model computes with {wanted!r})"


def _find(values: Any, name: str) -> Any:
    """The value of "a.b"; entries of lists are named by number. None: there is none."""
    for part in name.split("."):
        if isinstance(values, list) and part.isdigit() and int(part) < len(values):
            values = values[int(part)]
        else:
            values = values.get(part) if isinstance(values, dict) else None
    return values


def _same(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, tuple):
        return isinstance(found, list) and len(found) == len(wanted) and all(map(_same, found, wanted))
    if isinstance(wanted, (int, float)):
        return isinstance(found, (int, float)) and math.isclose(found, wanted, rel_tol=ROUNDED)
    return bool(found == wanted)


def _function(name: Any) -> Any:
    return SAME_FUNCTION.get(str(name), name)


def _side(size: Any) -> Any:
    """Of a square, which may be told as its two sides."""
    return size[0] if isinstance(size, list) and size and size.count(size[0]) == len(size) else size


def _rotary_kind(parameters: Any) -> Any:
    if not isinstance(parameters, dict):
        return parameters
    each = any(isinstance(value, dict) for value in parameters.values())
    return "another for each kind of layer" if each else parameters.get("rope_type", parameters.get("type", "default"))


_ACTIVATION, _EPS = ("hidden_act", "hidden_activation"), ("layer_norm_eps", "layer_norm_epsilon")
_QUANTISED = Field(("quantization_config",), lambda ours: "floats")


def _tower(patch: int, act: str, eps: float, *more: Field) -> tuple[Field, ...]:
    return (
        Field(("hidden_size",), lambda ours: ours.width, 768),
        Field(("num_hidden_layers",), lambda ours: ours.depth, 12),
        Field(("num_attention_heads",), lambda ours: ours.heads, 12),
        Field(("num_channels",), lambda ours: 3, 3),
        Field(("patch_size",), lambda ours: ours.patch, patch, _side),
        Field(_ACTIVATION, lambda ours: GELU[ours.gelu], act, _function),
        Field(_EPS, lambda ours: ours.norm_eps, eps),
        *more,
    )


_DINOV2 = (
    Field(("mlp_ratio",), lambda ours: ours.mlp / ours.width, 4),
    Field(("qkv_bias",), lambda ours: True, True),
    Field(("use_swiglu_ffn",), lambda ours: False, False),
)
_REGISTERS = Field(("num_register_tokens",), lambda ours: ours.registers, 4)
_MLP = Field(("intermediate_size",), lambda ours: ours.mlp, 3072)
_LANGUAGE = (
    Field(("hidden_size",), lambda ours: ours.width, 4096),
    Field(("num_hidden_layers",), lambda ours: ours.of_depth or ours.depth, 32),
    Field(("num_attention_heads",), lambda ours: ours.heads, 32),
    Field(("head_dim",), lambda ours: ours.width // ours.heads),
    Field(_ACTIVATION, lambda ours: "silu", "silu", _function),
    Field(("rms_norm_eps", *_EPS), lambda ours: ours.norm_eps, 1e-6),
    Field(
        ("rope_parameters.rope_theta", "rope_scaling.rope_theta", "rope_theta"), lambda ours: ours.rope_theta, 10_000.0
    ),
    Field(("rope_parameters", "rope_scaling"), lambda ours: "default", None, _rotary_kind),
    Field(
        ("rope_parameters.partial_rotary_factor", "rope_scaling.partial_rotary_factor", "partial_rotary_factor"),
        lambda ours: 1,
    ),
    Field(("use_sliding_window",), lambda ours: False, False),
    Field(("mlp_bias",), lambda ours: False, False),
)
# Of the towers that timm names; it leaves out what its code has, so only what is there can be compared.
_TIMM = (
    Field(("pretrained_cfg.mean",), lambda ours: ours.mean),
    Field(("pretrained_cfg.std",), lambda ours: ours.std),
    Field(("model_args.num_heads",), lambda ours: ours.heads),
    Field(("model_args.act_layer",), lambda ours: GELU[ours.gelu], None, _function),
)
_PIXELS = (
    Field(("do_normalize",), lambda ours: True),
    Field(("image_mean",), lambda ours: ours.mean),
    Field(("image_std",), lambda ours: ours.std),
    Field(("rescale_factor",), lambda ours: 1 / 255),
)
_ACTIVATIONS = ("model_args.act_layer", "timm_override_act_layers.1", *_ACTIVATION)
_PRISMATIC = {
    tower: (Field((f"timm_override_act_layers.{i}",), lambda ours: GELU[ours.gelu], None, _function),)
    for i, tower in enumerate(("dinov2", "siglip"))
}

# By the model_type of config.json.
FAMILIES: dict[str, tuple[Field, ...]] = {
    "dinov2": _tower(14, "gelu", 1e-6, *_DINOV2),
    "dinov2_with_registers": _tower(16, "gelu", 1e-6, *_DINOV2, _REGISTERS),
    "siglip_vision_model": _tower(16, "gelu_pytorch_tanh", 1e-6, _MLP),
    "clip_vision_model": _tower(32, "quick_gelu", 1e-5, _MLP),
    "t5": (
        Field(("vocab_size",), lambda ours: ours.vocabulary, 32_128),
        Field(("d_model", "hidden_size"), lambda ours: ours.width, 512),
        Field(("num_layers", "num_hidden_layers"), lambda ours: ours.depth, 6),
        Field(("num_heads", "num_attention_heads"), lambda ours: ours.heads, 8),
        Field(("d_kv", "head_dim"), lambda ours: ours.width // ours.heads, 64),
        Field(("d_ff",), lambda ours: ours.mlp, 2048),
        Field(("feed_forward_proj", "dense_act_fn"), lambda ours: "relu", "relu"),
        Field(("is_gated_act",), lambda ours: False, False),
        Field(("relative_attention_num_buckets",), lambda ours: ours.buckets, 32),
        Field(("relative_attention_max_distance",), lambda ours: ours.max_distance, 128),
        Field(("layer_norm_epsilon", "layer_norm_eps"), lambda ours: NORM_EPS, 1e-6),
    ),
    "qwen2": (
        *_LANGUAGE,
        Field(("vocab_size",), lambda ours: ours.vocabulary, 151_936),
        Field(("intermediate_size",), lambda ours: ours.mlp, 22_016),
        Field(
            ("num_key_value_heads",),
            lambda ours: ours.kv_heads,
            lambda config: config.get("num_attention_heads", 32) if "num_key_value_heads" in config else 32,
        ),
        Field(("layer_types",), lambda ours: "full_attention", None, _side),
    ),
    "llama": (
        *_LANGUAGE,
        Field(("vocab_size",), lambda ours: ours.vocabulary, 32_000),
        Field(("intermediate_size",), lambda ours: ours.mlp, 11_008),
        Field(
            ("num_key_value_heads",), lambda ours: ours.kv_heads, lambda config: config.get("num_attention_heads", 32)
        ),
        Field(("attention_bias",), lambda ours: ours.qkv_bias, False),
    ),
}
# Whole models of two towers: the vision tower's family, and where its fields are.
NESTED = {"siglip": ("vision_config",), "clip": ("vision_config_dict", "vision_config")}
FAMILIES |= {whole: FAMILIES[f"{whole}_vision_model"] for whole in NESTED}
