"""The sizes of a model. One code builds every size; a configuration is all that differs."""

import dataclasses
from typing import Literal

# Top-level keys of the parameter tree, in the order of the pretrained stack.
PRETRAINED = ("dinov2", "siglip", "bridge", "language")
# Those without pretrained values: fine-tuning makes them anew.
FRESH = ("readout", "action_head", "proprio_projector")

RGB = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class TowerConfig:
    """A pre-LN vision transformer over square patches.

    Attributes:
      patch: side of a patch in pixels.
      width, depth, heads, mlp: of the blocks; mlp is the width of their hidden layer.
      cls_token: a class token goes before the patches.
      registers: number of register tokens between class token and patches (arXiv 2309.16588).
      layer_scale: initial value of a learned factor on every residual branch; None: there is none.
      gelu: the exact function, or its tanh approximation.
      mean, std: of the pixels (0..1) that the tower takes as zero and one.
    """

    patch: int
    width: int
    depth: int
    heads: int
    mlp: int
    cls_token: bool
    registers: int
    layer_scale: float | None
    gelu: Literal["exact", "tanh"]
    mean: RGB
    std: RGB

    def __post_init__(self) -> None:
        """Refuses sizes that do not fit each other."""
        if self.width % self.heads:
            raise ValueError(f"model: a tower's width {self.width} is not a multiple of heads {self.heads}.")


@dataclasses.dataclass(frozen=True)
class LanguageConfig:
    """A decoder of the Qwen2.5 and Llama kind.

    Attributes:
      vocabulary: rows of the token embedding, which is also the output head.
      width, depth, mlp: of the blocks; mlp is the width of the gated hidden layer.
      heads, kv_heads: query heads, and heads of keys and values, each shared by heads / kv_heads
        query heads.
      qkv_bias: query, key and value projections have biases (Qwen2.5 has, Llama has not).
      rope_theta: base of the rotary wavelengths.
      norm_eps: of the RMS norms.
    """

    vocabulary: int
    width: int
    depth: int
    heads: int
    kv_heads: int
    mlp: int
    qkv_bias: bool
    rope_theta: float
    norm_eps: float

    def __post_init__(self) -> None:
        """Refuses sizes that do not fit each other."""
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(f"model: language width {self.width} / heads {self.heads} is not an even integer.")
        if self.heads % self.kv_heads:
            raise ValueError(f"model: language heads {self.heads} is not a multiple of kv_heads {self.kv_heads}.")


@dataclasses.dataclass(frozen=True)
class VLAConfig:
    """A whole model.

    Attributes:
      dinov2, siglip, language: the pretrained parts; the bridge follows from their widths.
      image_size: height and width of the images in pixels.
      instruction_length: tokens of an instruction, padding included.
      action_dim, proprio_dim: entries of one action and one proprio vector.
      chunk: actions predicted at once.
      head: width of the action head's hidden layers.
      dtype: of the activations; parameters are float32 whatever it is.
    """

    dinov2: TowerConfig
    siglip: TowerConfig
    language: LanguageConfig
    image_size: int
    instruction_length: int
    action_dim: int
    proprio_dim: int
    chunk: int
    head: int
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        """Refuses sizes that do not fit each other."""
        patches = {tower.patch for tower in (self.dinov2, self.siglip)}
        if len(patches) > 1:
            raise ValueError(f"model: the towers' patch sizes {patches} differ; give one.")
        if self.image_size % self.dinov2.patch:
            raise ValueError(
                f"model: image_size {self.image_size} is not a multiple of the patch size "
                f"{self.dinov2.patch}; give one that is."
            )


CONFIGS: dict[str, VLAConfig] = {
    "tiny": VLAConfig(
        dinov2=TowerConfig(
            patch=8,
            width=128,
            depth=4,
            heads=4,
            mlp=512,
            cls_token=True,
            registers=4,
            layer_scale=0.1,
            gelu="exact",
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
        ),
        siglip=TowerConfig(
            patch=8,
            width=128,
            depth=4,
            heads=4,
            mlp=512,
            cls_token=False,
            registers=0,
            layer_scale=None,
            gelu="tanh",
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
        ),
        language=LanguageConfig(
            vocabulary=259,
            width=128,
            depth=4,
            heads=4,
            kv_heads=2,
            mlp=352,
            qkv_bias=True,
            rope_theta=10_000.0,
            norm_eps=1e-6,
        ),
        image_size=64,
        instruction_length=56,
        action_dim=4,
        proprio_dim=4,
        chunk=8,
        head=128,
    ),
}
