"""ONNX and GGUF to directories as transformers saves them: float32 safetensors, config.json, tokenizer.json."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from octo_integration.weights.store import FILE_MODE

PREFIX = "backbone."  # of DINOv2's names; a saliency decoder stands on it
ONNX_CONFIG = {
    "model_type": "dinov2",
    "architectures": ["Dinov2Model"],
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "mlp_ratio": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "image_size": 518,
    "patch_size": 14,
    "num_channels": 3,
    "qkv_bias": True,
    "use_swiglu_ffn": False,
}
PREPROCESSOR = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "rescale_factor": 1 / 255}
# Of a block, llama.cpp's names -> transformers'.
BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
CONTROL = 3  # kind of a special token
DIGITS = {"type": "Digits", "individual_digits": True}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def dinov2(source: Path, out: Path) -> Path:
    """DINOv2 out of an ONNX file that torch exported, without what stands on it.

    Matrices that are multiplied from the right have lost their names: the node that multiplies by one keeps the path of
    its layer.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(source)).graph
    values = {tensor.name: tensor for tensor in graph.initializer}
    tensors = {}
    for name, tensor in values.items():
        if name.startswith(PREFIX):
            tensors[name.removeprefix(PREFIX)] = numpy_helper.to_array(tensor)
    for node in graph.node:
        path = node.name.strip("/").split("/")
        if node.op_type == "MatMul" and path[0] == PREFIX[:-1] and node.input[1] in values:
            tensors[".".join([*path[1:-1], "weight"])] = numpy_helper.to_array(values[node.input[1]]).T
    tensors["embeddings.position_embeddings"] = _positions(values, numpy_helper.to_array)
    return _save(out, tensors, ONNX_CONFIG, {"preprocessor_config.json": PREPROCESSOR})


def _positions(values: Mapping[str, Any], read: Any) -> np.ndarray:
    """The table, which the exporter folded into two constants: of the class token, and of a square of patches."""
    constants = [read(tensor) for name, tensor in values.items() if name.startswith("onnx::")]
    (token,) = [x for x in constants if x.shape == (1, 1, 384)]
    (patches,) = [x for x in constants if x.shape == (1, (518 // 14) ** 2, 384)]
    return np.concatenate([token, patches], axis=1)


def llama(source: Path, out: Path) -> Path:
    """A language model of the Llama kind out of a GGUF file, dequantised, with the tokenizer that it carries."""
    from gguf import GGUFReader, dequantize

    reader = GGUFReader(str(source))
    told = {name: field.contents() for name, field in reader.fields.items()}
    heads, shared = told["llama.attention.head_count"], told["llama.attention.head_count_kv"]
    tensors = {}
    for tensor in reader.tensors:
        value = np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32)
        stem = tensor.name.removesuffix(".weight")
        if stem in OUTSIDE:
            tensors[f"{OUTSIDE[stem]}.weight"] = value
            continue
        _, number, part = stem.split(".")
        count = {"attn_q": heads, "attn_k": shared}.get(part)
        tensors[f"model.layers.{number}.{BLOCK[part]}.weight"] = value if count is None else unpermuted(value, count)
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": told["llama.vocab_size"],
        "hidden_size": told["llama.embedding_length"],
        "intermediate_size": told["llama.feed_forward_length"],
        "num_hidden_layers": told["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": shared,
        "max_position_embeddings": told["llama.context_length"],
        "rope_theta": told["llama.rope.freq_base"],
        "rms_norm_eps": told["llama.attention.layer_norm_rms_epsilon"],
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in {tensor.name for tensor in reader.tensors},
        "bos_token_id": told["tokenizer.ggml.bos_token_id"],
        "eos_token_id": told["tokenizer.ggml.eos_token_id"],
    }
    return _save(out, tensors, config, {"tokenizer.json": tokenizer(told)})


def unpermuted(value: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys as transformers has them: llama.cpp puts the two of a rotary pair side by side."""
    rows, width = value.shape
    return value.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)


def tokenizer(told: Mapping[str, Any]) -> dict[str, Any]:
    """tokenizer.json of a byte-level BPE from a GGUF's vocabulary and merges; digits stand alone, as SmolLM2's."""
    tokens, kinds = told["tokenizer.ggml.tokens"], told["tokenizer.ggml.token_type"]
    special = [i for i, kind in enumerate(kinds) if kind == CONTROL]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": tokens[i], **flags} for i in special],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [DIGITS, BYTES]},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": list(told["tokenizer.ggml.merges"]),
        },
    }


def _save(out: Path, tensors: Mapping[str, np.ndarray], config: Mapping[str, Any], more: Mapping[str, Any]) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    whole = {name: np.ascontiguousarray(value, np.float32) for name, value in tensors.items()}
    save_file(whole, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(FILE_MODE)
    for name, values in {"config.json": config, **more}.items():
        (out / name).write_text(json.dumps(values, indent=1) + "\n")
    return out
