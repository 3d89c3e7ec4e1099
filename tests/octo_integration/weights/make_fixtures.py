"""Small random models of the published architectures, made by torch and transformers, with inputs and outputs.

    python tests/octo_integration/weights/make_fixtures.py FOLDER

Needs torch and transformers alone. Per architecture FOLDER/<name>/model.safetensors and config.json, as
`save_pretrained` writes them, and FOLDER/<name>_io.safetensors. The repository holds what it made (`fixtures/`); the
live test makes them again.
"""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

TOWERS = ("dinov2", "siglip", "clip", "dinov2_plain")
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
PIXELS = {"image_size": 16, "patch_size": 4}
TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 40}
MODELS = {
    "dinov2": lambda: hf.Dinov2WithRegistersModel(
        hf.Dinov2WithRegistersConfig(
            hidden_size=32, num_hidden_layers=3, num_attention_heads=2, mlp_ratio=2, num_register_tokens=2, **PIXELS
        )
    ),
    "siglip": lambda: hf.SiglipVisionModel(hf.SiglipVisionConfig(**VISION, **PIXELS)),
    "clip": lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**VISION, **PIXELS)),
    "qwen2": lambda: hf.Qwen2ForCausalLM(
        hf.Qwen2Config(
            **TEXT,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=True,
            rms_norm_eps=1e-6,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        )
    ),
    "llama": lambda: hf.LlamaForCausalLM(
        hf.LlamaConfig(
            **TEXT, num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=False, rms_norm_eps=1e-5
        )
    ),
    "t5": lambda: hf.T5EncoderModel(
        hf.T5Config(d_model=32, d_kv=16, d_ff=48, num_layers=2, num_heads=2, vocab_size=40, feed_forward_proj="relu")
    ),
    "dinov2_plain": lambda: hf.Dinov2Model(  # without registers
        hf.Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, **PIXELS)
    ),
}


def main(folder: Path) -> None:
    for seed, (name, make) in enumerate(MODELS.items()):
        torch.manual_seed(seed)
        model = make().eval()
        with torch.no_grad():
            for parameter in model.parameters():  # no bias at zero, no scale at one
                parameter.add_(0.1 * torch.randn_like(parameter))
            (vision if name in TOWERS else text)(name, model, folder / name)
            if name in TOWERS:
                resized(name, model, folder)
    timm_names(folder)
    positions(folder)


def vision(name: str, model: torch.nn.Module, folder: Path) -> None:
    pixels = torch.randn(2, 3, 16, 16)
    values = features(model, pixels)
    if name == "siglip":
        with exact_gelu(model):
            values |= {f"timm_{key}": value for key, value in features(model, pixels).items()}
    save(model, folder, pixels=pixels, **values)


@contextlib.contextmanager
def exact_gelu(model: torch.nn.Module) -> Iterator[None]:
    """As timm computes SigLIP of 400M parameters."""
    mlps = [m for m in model.modules() if hasattr(m, "activation_fn")]
    before = [m.activation_fn for m in mlps]
    for m in mlps:
        m.activation_fn = torch.nn.GELU()
    yield
    for m, function in zip(mlps, before):
        m.activation_fn = function


def features(model: torch.nn.Module, pixels: torch.Tensor, **options: bool) -> dict[str, torch.Tensor]:
    out = model(pixels, output_hidden_states=True, **options)
    first = out.last_hidden_state.shape[1] - (pixels.shape[-1] // 4) ** 2
    norm = next(m for n, m in model.named_modules() if n.endswith(("layernorm", "post_layernorm")))
    return {"penultimate": out.hidden_states[-2][:, first:], "last": norm(out.hidden_states[-1])[:, first:]}


def resized(name: str, model: torch.nn.Module, folder: Path) -> None:
    """Outputs at 12 pixels, which positions are resampled for: by transformers, and as timm resamples them."""
    pixels = torch.randn(1, 3, 12, 12)
    options = {} if name.startswith("dinov2") else {"interpolate_pos_encoding": True}
    values = {"pixels": pixels, "last": features(model, pixels, **options)["last"]}
    if name != "clip":
        antialias(model, 3)
        with exact_gelu(model) if name == "siglip" else contextlib.nullcontext():
            values["timm"] = features(model, pixels)["last"]
    save_file({key: x.contiguous() for key, x in values.items()}, folder / f"{name}_resized.safetensors")


def antialias(model: torch.nn.Module, side: int) -> None:
    """Gives a model of 4 x 4 patches the positions of side x side, so that none are left for it to resample."""
    embeddings = next(m for n, m in model.named_modules() if n.endswith("embeddings"))
    table = getattr(embeddings, "position_embedding", None)
    rows = embeddings.position_embeddings[0] if table is None else table.weight
    old = rows[-16:].T.reshape(1, -1, 4, 4)
    new = torch.nn.functional.interpolate(old, size=(side, side), mode="bicubic", antialias=True)
    rows = torch.cat([rows[:-16], new[0].flatten(1).T])
    if table is None:
        embeddings.position_embeddings = torch.nn.Parameter(rows[None])
    else:
        table.weight, embeddings.position_ids = torch.nn.Parameter(rows), torch.arange(len(rows))[None]


def text(name: str, model: torch.nn.Module, folder: Path) -> None:
    tokens = torch.randint(0, 40, (2, 20))
    if name == "t5":
        mask = torch.ones_like(tokens)
        mask[1, 15:] = 0
        save(model, folder, tokens=tokens, mask=mask, last=model(tokens, attention_mask=mask).last_hidden_state)
        return
    out = model(tokens, output_hidden_states=True)
    save(model, folder, tokens=tokens, last=out.hidden_states[-1], logits=out.logits)


def save(model: torch.nn.Module, folder: Path, **values: torch.Tensor) -> None:
    model.save_pretrained(folder)
    for extra in folder.glob("generation_config.json"):
        extra.unlink()
    save_file(
        {name: value.contiguous() for name, value in values.items()}, folder.with_name(f"{folder.name}_io.safetensors")
    )


def timm_names(folder: Path) -> None:
    """The DINOv2 and SigLIP models again, under the names and in the fused form of timm."""
    for name in ("dinov2", "siglip", "dinov2_plain"):
        old = load_file(folder / name / "model.safetensors")
        old = {key.removeprefix("vision_model."): value for key, value in old.items()}
        new = {}
        for key, value in old.items():
            if name == "dinov2" and key == "embeddings.cls_token":
                value = value + old["embeddings.position_embeddings"][:, :1]
            if name == "dinov2" and key == "embeddings.position_embeddings":
                value = value[:, 1:]
            renamed = timm_name(key)
            if renamed is not None:
                new[renamed] = value.reshape(1, *value.shape) if renamed == "pos_embed" and value.ndim == 2 else value
        for i in range(2 if name == "dinov2_plain" else 3):
            for kind in ("weight", "bias"):
                parts = [new.pop(f"blocks.{i}.attn.{part}.{kind}") for part in "qkv"]
                new[f"blocks.{i}.attn.qkv.{kind}"] = torch.cat(parts)
        target = folder / f"timm_{name}"
        target.mkdir(exist_ok=True)
        save_file({key: value.contiguous() for key, value in new.items()}, target / "model.safetensors")


def timm_name(key: str) -> str | None:
    """transformers' name of a vision parameter -> timm's, or None where timm has none."""
    table = {
        "embeddings.cls_token": "cls_token",
        "embeddings.register_tokens": "reg_token",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.position_embedding.weight": "pos_embed",
        "embeddings.mask_token": None,
    }
    if key in table:
        return table[key]
    if key.startswith("head."):
        return None
    for old, new in (
        ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
        ("embeddings.patch_embedding", "patch_embed.proj"),
        ("encoder.layers.", "blocks."),
        ("encoder.layer.", "blocks."),
        ("layer_norm1", "norm1"),
        ("layer_norm2", "norm2"),
        ("attention.attention.query", "attn.q"),
        ("attention.attention.key", "attn.k"),
        ("attention.attention.value", "attn.v"),
        ("attention.output.dense", "attn.proj"),
        ("attention.q_proj", "attn.q"),
        ("attention.k_proj", "attn.k"),
        ("attention.v_proj", "attn.v"),
        ("attention.o_proj", "attn.proj"),
        ("self_attn.q_proj", "attn.q"),
        ("self_attn.k_proj", "attn.k"),
        ("self_attn.v_proj", "attn.v"),
        ("self_attn.out_proj", "attn.proj"),
        ("layer_scale1.lambda1", "ls1.gamma"),
        ("layer_scale2.lambda1", "ls2.gamma"),
        ("post_layernorm", "norm"),
        ("layernorm", "norm"),
    ):
        key = key.replace(old, new)
    return key


def positions(folder: Path) -> None:
    """Positions of 7 x 7 patches on 4 x 4 and 9 x 9, antialiased and not; of 518 pixels at 224 and 230, by DINOv2."""
    before = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 8, 7, 7)).astype(np.float32))
    flat = {"before": before[0].flatten(1).T.contiguous()}
    for side in (4, 9):
        for kind, antialias in (("antialiased", True), ("plain", False)):
            after = torch.nn.functional.interpolate(before, size=(side, side), mode="bicubic", antialias=antialias)
            flat[f"{kind}_{side}"] = after[0].flatten(1).T.contiguous()
    model = hf.Dinov2Model(
        hf.Dinov2Config(hidden_size=1, num_hidden_layers=1, num_attention_heads=1, image_size=518, patch_size=14)
    )
    model.embeddings.position_embeddings.data = torch.from_numpy(
        np.random.default_rng(0).normal(size=(1, 1 + 37 * 37, 1)).astype(np.float32)
    )
    for size in (224, 230):
        sized = model.embeddings.interpolate_pos_encoding(torch.zeros(1, 1 + 16 * 16, 1), size, size)
        flat[f"dinov2_{size}"] = sized[0, 1:].detach().contiguous()
    flat["dinov2_518"] = model.embeddings.position_embeddings[0, 1:].detach().contiguous()
    save_file(flat, folder / "positions.safetensors")


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    main(target)
