"""The named models: `--model tiny`, `small`, `tiny_clip`, `nano`, `nano_8`, `mini`, `openvla`, `octo_small`."""

import dataclasses

from octo_integration.model.config import LanguageConfig, StemConfig, T5Config, TowerConfig, VLAConfig
from octo_integration.model.heads.diffusion import DiffusionConfig
from octo_integration.model.heads.regression import L1Config

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)

# facebook/dinov2-with-registers-large (arXiv 2309.16588), at 224 pixels.
DINOV2_L = TowerConfig(
    patch=14,
    width=1024,
    depth=24,
    heads=16,
    mlp=4096,
    cls_token=True,
    registers=4,
    layer_scale=1e-5,
    gelu="exact",
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    features="penultimate",
)
# google/siglip-so400m-patch14-224 (arXiv 2303.15343), vision part, and as timm computes it.
SIGLIP_SO400M = TowerConfig(
    patch=14,
    width=1152,
    depth=27,
    heads=16,
    mlp=4304,
    cls_token=False,
    registers=0,
    layer_scale=None,
    gelu="tanh",
    mean=HALF,
    std=HALF,
    features="penultimate",
)
SIGLIP_SO400M_TIMM = dataclasses.replace(SIGLIP_SO400M, gelu="exact")
# openai/clip-vit-large-patch14 (arXiv 2103.00020), vision part.
CLIP_L = TowerConfig(
    patch=14,
    width=1024,
    depth=24,
    heads=16,
    mlp=4096,
    cls_token=True,
    registers=0,
    layer_scale=None,
    gelu="quick",
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
    norm_eps=1e-5,
    pre_norm=True,
    features="penultimate",
)
# Qwen/Qwen2.5-0.5B (arXiv 2412.15115).
QWEN2_5_0_5B = LanguageConfig(
    vocabulary=151_936,
    width=896,
    depth=24,
    heads=14,
    kv_heads=2,
    mlp=4864,
    qkv_bias=True,
    rope_theta=1_000_000.0,
    norm_eps=1e-6,
)
# meta-llama/Llama-2-7b-hf (arXiv 2307.09288).
LLAMA2_7B = LanguageConfig(
    vocabulary=32_000,
    width=4096,
    depth=32,
    heads=32,
    kv_heads=32,
    mlp=11_008,
    qkv_bias=False,
    rope_theta=10_000.0,
    norm_eps=1e-5,
    tied=False,
)
# facebook/dinov2-small (arXiv 2304.07193), without registers.
DINOV2_S = dataclasses.replace(DINOV2_L, width=384, depth=12, heads=6, mlp=1536, registers=0)
# HuggingFaceTB/SmolLM2-135M (arXiv 2502.02737).
SMOLLM2_135M = LanguageConfig(
    vocabulary=49_152,
    width=576,
    depth=30,
    heads=9,
    kv_heads=3,
    mlp=1536,
    qkv_bias=False,
    rope_theta=100_000.0,
    norm_eps=1e-5,
)
# google-t5/t5-base (arXiv 1910.10683), encoder.
T5_BASE = T5Config(vocabulary=32_128, width=768, depth=12, heads=12, mlp=3072)

# Of Prismatic models (openvla/prismatic/models/vlas).
PROMPT = "In: What action should the robot take to {instruction}?\nOut:"


def _tower(large: TowerConfig, width: int, depth: int, heads: int) -> TowerConfig:
    """A tower in a small size: what tells DINOv2 and SigLIP apart is as in the large ones."""
    scale = None if large.layer_scale is None else 0.1  # blocks are few, and learn from scratch
    return dataclasses.replace(
        large, patch=8, width=width, depth=depth, heads=heads, mlp=4 * width, layer_scale=scale, features="last"
    )


def _own(width: int, depth: int, heads: int, image_size: int, lr: float) -> VLAConfig:
    """A model of our own for Meta-World: small towers, and a decoder of Qwen2.5's kind over the shipped words."""
    language = dataclasses.replace(
        QWEN2_5_0_5B,
        vocabulary=768,
        width=width,
        depth=depth,
        heads=heads,
        kv_heads=heads,
        mlp=11 * width // 4,
        rope_theta=10_000.0,
    )
    return VLAConfig(
        dinov2=_tower(DINOV2_L, width, depth, heads),
        siglip=_tower(SIGLIP_SO400M, width, depth, heads),
        language=language,
        image_size=image_size,
        instruction_length=16,
        action_dim=4,
        proprio_dim=4,
        chunk=8,
        head=L1Config(hidden=width),
        tokenizer="tiny",
        lr=lr,
    )


NANO = VLAConfig(
    dinov2=DINOV2_S,
    language=SMOLLM2_135M,
    image_size=112,
    instruction_length=40,
    action_dim=4,
    proprio_dim=4,
    chunk=8,
    head=L1Config(hidden=576),
    prompt=PROMPT,
    lr=5e-5,
)
TINY = _own(width=64, depth=4, heads=2, image_size=64, lr=1e-3)

CONFIGS: dict[str, VLAConfig] = {
    # Runs on a laptop; its weights are shipped. Its rate was chosen in benchmarks/generalization.
    "tiny": TINY,
    # For one GPU; on frames of its size, maps-vla collect-frames --image-size 128.
    "small": _own(width=256, depth=6, heads=4, image_size=128, lr=3e-4),
    # `tiny` with one tower of CLIP's kind, of as many blocks as its two have.
    "tiny_clip": dataclasses.replace(TINY, dinov2=None, siglip=None, clip=_tower(CLIP_L, 64, 8, 2)),
    # Published backbones that two cores can fine-tune, for benchmarks/real_backbones; nothing pretrained joins them.
    "nano": NANO,
    "nano_8": dataclasses.replace(NANO, language=dataclasses.replace(SMOLLM2_135M, depth=8, of_depth=30)),
    # MiniVLA: Prismatic with Qwen2.5-0.5B. Its rate and OpenVLA's are those of the paper.
    "mini": VLAConfig(
        dinov2=DINOV2_L,
        siglip=SIGLIP_SO400M_TIMM,
        language=QWEN2_5_0_5B,
        image_size=224,
        instruction_length=32,
        action_dim=7,
        proprio_dim=7,
        chunk=8,
        head=L1Config(hidden=896),
        prompt=PROMPT,
        dtype="bfloat16",
        remat="full",
        lr=5e-5,
    ),
    # OpenVLA (arXiv 2406.09246) with the chunk head of OpenVLA-OFT.
    "openvla": VLAConfig(
        dinov2=DINOV2_L,
        siglip=SIGLIP_SO400M_TIMM,
        language=dataclasses.replace(LLAMA2_7B, vocabulary=32_064),  # OpenVLA pads the vocabulary
        image_size=224,
        instruction_length=32,
        action_dim=7,
        proprio_dim=8,
        chunk=8,
        head=L1Config(hidden=4096),
        prompt=PROMPT,
        dtype="bfloat16",
        remat="full",
        lr=5e-5,
    ),
    # The sizes of Octo-small (arXiv 2405.12213): conv stem, T5 for the words, two cameras, diffusion.
    "octo_small": VLAConfig(
        stem=StemConfig(channels=(32, 96, 192, 384), width=512),
        t5=T5_BASE,
        language=LanguageConfig(
            vocabulary=0,
            width=384,
            depth=12,
            heads=6,
            kv_heads=6,
            mlp=1024,
            qkv_bias=True,
            rope_theta=10_000.0,
            norm_eps=1e-6,
        ),
        image_size=256,
        instruction_length=16,
        action_dim=7,
        proprio_dim=7,
        chunk=4,
        head=DiffusionConfig(hidden=256),
        cameras=("primary", "wrist"),
        goal=True,
        lr=3e-4,
    ),
}
