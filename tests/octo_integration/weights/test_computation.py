"""What a config.json says that is computed must be what our model computes."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from octo_integration.model.config import T5Config
from octo_integration.model.sizes import CLIP_L, CONFIGS, DINOV2_L, LLAMA2_7B, QWEN2_5_0_5B, SIGLIP_SO400M, T5_BASE
from octo_integration.weights.computation import FAMILIES, NESTED, check_computation
from octo_integration.weights.hf import Checkpoint
from octo_integration.weights.names import MODEL_TYPES
from tests.octo_integration.weights.test_parity import DECODERS, HERE, TOWERS

T5 = T5Config(vocabulary=40, width=32, depth=2, heads=2, mlp=48)
OURS = {**TOWERS, **DECODERS, "t5": T5}
MODULES = {"qwen2": "language", "llama": "language", "dinov2_plain": "dinov2"}


def check(name, config, ours=None, **other):
    configs = {"config.json": config, **other}
    check_computation(MODULES.get(name, name), ours or OURS[name], Checkpoint(Path("there"), {}, configs))


def refused(name, config, ours=None, **other):
    with pytest.raises(ValueError) as refusal:
        check(name, config, ours, **other)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def fixture(name):
    return json.loads((HERE / "fixtures" / name / "config.json").read_text())


def test_every_model_type_that_is_taken_has_its_fields():
    assert {kind for kinds in MODEL_TYPES.values() for kind in kinds} == set(FAMILIES)


@pytest.mark.parametrize("name", OURS)
def test_what_transformers_saved_with_the_models_is_what_ours_compute(name):
    check(name, fixture(name))


VISION = [
    ("hidden_act", "relu", "gelu"),
    ("num_attention_heads", 4, 2),
    ("layer_norm_eps", 1e-5, 1e-6),
    ("layer_norm_epsilon", 1e-3, 1e-6),
    ("hidden_activation", "quick_gelu", "gelu"),
    ("patch_size", [4, 8], 4),
    ("num_channels", 1, 3),
    ("hidden_size", 64, 32),
    ("num_hidden_layers", 4, 3),
    ("quantization_config", {"quant_method": "gptq"}, "floats"),
]
TEXT = [
    ("hidden_act", "gelu", "silu"),
    ("num_key_value_heads", 1, 2),
    ("num_attention_heads", 8, 4),
    ("head_dim", 16, 8),
    ("rms_norm_eps", 1e-5, 1e-6),
    ("rope_theta", 1e4, 1e6),
    ("rope_scaling", {"type": "linear", "factor": 2.0}, "default"),
    ("rope_scaling", {"rope_type": "llama3", "factor": 8.0}, "default"),
    ("rope_parameters", {"rope_theta": 1e6, "rope_type": "yarn"}, "default"),
    ("rope_parameters", {"full_attention": {"rope_theta": 1e6, "rope_type": "default"}}, "default"),
    ("partial_rotary_factor", 0.5, 1),
    ("use_sliding_window", True, False),
    ("layer_types", ["full_attention", "sliding_attention"], "full_attention"),
    ("intermediate_size", 64, 48),
    ("vocab_size", 41, 40),
]
T5_FIELDS = [
    ("num_heads", 4, 2),
    ("d_kv", 8, 16),
    ("feed_forward_proj", "gelu", "relu"),
    ("is_gated_act", True, False),
    ("relative_attention_num_buckets", 16, 32),
    ("relative_attention_max_distance", 64, 128),
    ("layer_norm_epsilon", 1e-5, 1e-6),
]
CASES = [
    *(("dinov2", *case) for case in VISION),
    *(("qwen2", *case) for case in TEXT),
    *(("t5", *case) for case in T5_FIELDS),
    ("dinov2", "use_swiglu_ffn", True, False),
    ("dinov2", "qkv_bias", False, True),
    ("dinov2", "mlp_ratio", 4, 2.0),
    ("dinov2", "num_register_tokens", 4, 2),
    ("siglip", "hidden_act", "gelu", "gelu_pytorch_tanh"),
    ("siglip", "intermediate_size", 64, 48),
    ("clip", "hidden_act", "gelu", "quick_gelu"),
    ("llama", "attention_bias", True, False),
    ("llama", "mlp_bias", True, False),
    ("llama", "rms_norm_eps", "1e-5", 1e-5),
]


@pytest.mark.parametrize(("name", "field", "value", "ours"), CASES)
def test_another_computation_is_refused_by_field(name, field, value, ours):
    said = refused(name, {**fixture(name), field: value})
    assert said.startswith(f"there/config.json does not fit {MODULES.get(name, name)} of the model: ")
    assert f"{field} is {value!r} (the model computes with {ours!r})" in said


@pytest.mark.parametrize("old", ["rope_theta", "rope_scaling"])
def test_the_rotary_base_in_old_spellings(old):
    config = {key: value for key, value in fixture("qwen2").items() if key != "rope_parameters"}
    value = {"rope_theta": 1e6, "type": "default"} if old == "rope_scaling" else 1e6
    check("qwen2", {**config, old: value})
    assert "rope_parameters.rope_theta is absent, which means 10000.0" in refused("qwen2", config)
    check("qwen2", config, dataclasses.replace(DECODERS["qwen2"], rope_theta=10_000.0))


def test_what_is_absent_or_null_is_what_its_family_says():
    heads = {**fixture("llama"), "num_attention_heads": 4, "head_dim": None}
    ours = dataclasses.replace(DECODERS["llama"], heads=4, kv_heads=4)
    for config in ({**heads, "num_key_value_heads": None}, {k: heads[k] for k in heads if k != "num_key_value_heads"}):
        check("llama", config, ours)
        assert "num_key_value_heads is absent, which means 4" in refused("llama", config, DECODERS["llama"])
    qwen = {key: value for key, value in fixture("qwen2").items() if key != "num_key_value_heads"}
    assert "num_key_value_heads is absent, which means 32" in refused("qwen2", qwen)
    base = dataclasses.replace(SIGLIP_SO400M, patch=16, width=768, depth=12, heads=12, mlp=3072)
    check("siglip", {"model_type": "siglip_vision_model"}, base)
    said = refused("siglip", {"model_type": "siglip_vision_model"}, dataclasses.replace(base, gelu="exact"))
    assert "hidden_act is absent, which means 'gelu_pytorch_tanh' (the model computes with 'gelu')" in said


SIZES = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 14}
PUBLISHED = {
    "dinov2": ({"model_type": "dinov2_with_registers", **SIZES, "image_size": 518, "layerscale_value": 1.0}, DINOV2_L),
    "siglip": (
        {
            "model_type": "siglip",
            "text_config": {"hidden_act": "relu", "num_attention_heads": 3},
            "vision_config": {**SIZES, "hidden_size": 1152, "num_hidden_layers": 27, "intermediate_size": 4304},
        },
        SIGLIP_SO400M,
    ),
    "clip": (
        {
            "model_type": "clip",
            "text_config": {"layer_norm_eps": 1.0},
            "vision_config": {"hidden_act": "relu"},  # which the next one replaces
            "vision_config_dict": {**SIZES, "intermediate_size": 4096},
        },
        CLIP_L,
    ),
    "qwen2": (
        {
            "model_type": "qwen2",
            "vocab_size": 151_936,
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "rope_theta": 1_000_000.0,
            "use_sliding_window": False,
            "sliding_window": 32_768,
            "max_window_layers": 24,
        },
        QWEN2_5_0_5B,
    ),
    "llama": ({"model_type": "llama", "rms_norm_eps": 9.999999747378752e-06, "rope_scaling": None}, LLAMA2_7B),
    "t5": ({"model_type": "t5", "d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12}, T5_BASE),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_files_of_our_models_in_their_old_spelling(name):
    check(name, *PUBLISHED[name])


@pytest.mark.parametrize("kind", NESTED)
def test_of_a_whole_model_the_vision_tower_is_compared(kind):
    config, ours = PUBLISHED[kind]
    inside = NESTED[kind][0]
    said = refused(kind, {**config, inside: {**config[inside], "num_attention_heads": 8}}, ours)
    assert f"{inside}.num_attention_heads is 8 (the model computes with 16)" in said
    assert f"{inside}.hidden_size is absent, which means 768" in refused(kind, {"model_type": kind}, ours)


def test_pixels_are_normalised_as_the_preprocessor_says():
    mean, ours = [0.48145466, 0.4578275, 0.40821073], PUBLISHED["clip"]
    check("clip", *ours, **{"preprocessor_config.json": {"image_mean": mean, "rescale_factor": 0.00392156862745098}})
    for file, inside in (("preprocessor_config.json", None), ("processor_config.json", "image_processor")):
        values = {"image_mean": [0.5] * 3}
        said = refused("clip", *ours, **{file: {inside: values} if inside else values})
        field = f"{inside}.image_mean" if inside else "image_mean"
        assert f"there/{file} does not fit clip of the model: {field} is [0.5, 0.5, 0.5] (the model" in said


def test_files_of_no_family_are_compared_in_what_they_say():
    timm = {"architecture": "vit_base", "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    check("siglip", timm, SIGLIP_SO400M)
    assert "pretrained_cfg.mean is [0.5, 0.5, 0.5]" in refused("dinov2", timm, DINOV2_L)
    said = refused("siglip", {**timm, "model_args": {"act_layer": "quick_gelu"}}, SIGLIP_SO400M)
    assert "model_args.act_layer is 'quick_gelu' (the model computes with 'gelu_pytorch_tanh')" in said
    check("qwen2", {"torch_dtype": "bfloat16", "rms_norm_eps": 1e-6})
    assert "rms_norm_eps is 0.1" in refused("qwen2", {"rms_norm_eps": 0.1})


def test_a_prismatic_checkpoint_leaves_out_what_it_started_from():
    vla = CONFIGS["openvla"]

    def prismatic(module, config):
        checkpoint = Checkpoint(Path("there"), {}, {"config.json": config})
        check_computation(module, getattr(vla, module), checkpoint, prismatic=True)

    config = {"model_type": "openvla", "timm_override_act_layers": [None, None]}
    config["text_config"] = {"model_type": "llama", "vocab_size": 32_064}
    for module in ("dinov2", "siglip", "language"):
        prismatic(module, config)
    with pytest.raises(ValueError, match="text_config.num_attention_heads is 8 .the model computes with 32"):
        prismatic("language", {**config, "text_config": {"model_type": "llama", "num_attention_heads": 8}})
    with pytest.raises(ValueError, match="timm_override_act_layers.1 is 'quick_gelu'"):
        prismatic("siglip", {**config, "timm_override_act_layers": [None, "quick_gelu"]})


DEFAULTS = """
import json, sys
from transformers import AutoConfig
print(json.dumps({kind: AutoConfig.for_model(kind).to_dict() for kind in sys.argv[1:]}))
"""


def test_the_defaults_are_those_of_transformers():
    python = os.environ.get("PARITY_PYTHON", sys.executable)
    kinds = [kind for kind in FAMILIES if kind not in NESTED]
    done = subprocess.run([python, "-W", "ignore", "-c", DEFAULTS, *kinds], capture_output=True, text=True, timeout=300)
    if "No module named 'transformers'" in done.stderr:
        pytest.skip(f"{python} has no transformers; make test sets PARITY_PYTHON to one that has")
    saved = json.loads(done.stdout.splitlines()[-1])
    for kind in kinds:
        for field in FAMILIES[kind]:
            default = field.default({}) if callable(field.default) else field.default
            if default is not None and field.names[0] in saved[kind]:
                assert saved[kind][field.names[0]] == default, (kind, field.names)
    assert saved["qwen2"]["rope_parameters"]["rope_theta"] == saved["llama"]["rope_parameters"]["rope_theta"] == 10_000
