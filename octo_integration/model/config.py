"""What a model is made of, as numbers. One code builds every size; a configuration is all that differs."""

import dataclasses
from typing import Literal

from octo_integration.model.heads import HeadConfig

# Top-level keys of the parameter tree that pretraining may have filled, in the order of the stack; a model has those
# that its configuration names.
TOWERS = ("dinov2", "siglip", "clip", "stem")
PRETRAINED = (*TOWERS, "t5", "bridge", "language")
# Those without pretrained values: fine-tuning makes them anew.
FRESH = ("readout", "action_head", "proprio_projector", "task_projector", "image_source")

RGB = tuple[float, float, float]
AttentionKind = Literal["blockwise", "causal", "full"]
Remat = Literal["none", "dots", "full"]


@dataclasses.dataclass(frozen=True)
class TowerConfig:
    """A pre-LN vision transformer over square patches: DINOv2, SigLIP or CLIP.

    Attributes:
      patch: side of a patch in pixels.
      width, depth, heads, mlp: of the blocks; mlp is the width of their hidden layer.
      cls_token: a class token goes before the patches.
      registers: number of register tokens between class token and patches (arXiv 2309.16588).
      layer_scale: initial value of a learned factor on every residual branch; None: there is none.
      gelu: the exact function, its tanh approximation, or x * sigmoid(1.702 x) (CLIP).
      mean, std: of the pixels (0..1) that the tower takes as zero and one.
      norm_eps: of the layer norms.
      pre_norm: a layer norm stands before the first block, and the patch embedding has no bias (CLIP).
      features: "last": the last block's, after the final norm; "penultimate": those of the block before, without the
        norm, as Prismatic takes them (arXiv 2402.07865). The last block and the norm are then parameters that nothing
        reads, as in Prismatic, so that checkpoints and layer counts agree.
    """

    patch: int
    width: int
    depth: int
    heads: int
    mlp: int
    cls_token: bool
    registers: int
    layer_scale: float | None
    gelu: Literal["exact", "tanh", "quick"]
    mean: RGB
    std: RGB
    norm_eps: float = 1e-6
    pre_norm: bool = False
    features: Literal["last", "penultimate"] = "last"

    def __post_init__(self) -> None:
        """Refuses sizes that do not fit each other."""
        if self.width % self.heads:
            raise ValueError(f"model: a tower's width {self.width} is not a multiple of heads {self.heads}.")
        if self.features == "penultimate" and self.depth < 2:
            raise ValueError("model: a tower of one block has no penultimate one; set features='last'.")


@dataclasses.dataclass(frozen=True)
class StemConfig:
    """Octo's convolutional image tokenizer: stride-2 convolutions, then one vector per patch (arXiv 2405.12213).

    Attributes:
      channels: of the convolutions, each halving the image; a patch is 2 ** len(channels) pixels.
      width: of the patch vectors.
    """

    channels: tuple[int, ...]
    width: int

    @property
    def patch(self) -> int:
        """Side of a patch in pixels."""
        return 2 ** len(self.channels)


@dataclasses.dataclass(frozen=True)
class T5Config:
    """A T5 encoder that reads the instruction (arXiv 1910.10683), frozen or not.

    Attributes:
      vocabulary: rows of the token embedding.
      width, depth, heads, mlp: of the blocks; heads have width / heads entries.
      buckets, max_distance: of the relative position bias.
    """

    vocabulary: int
    width: int
    depth: int
    heads: int
    mlp: int
    buckets: int = 32
    max_distance: int = 128


@dataclasses.dataclass(frozen=True)
class LanguageConfig:
    """A decoder of the Qwen2.5 and Llama kind.

    Attributes:
      vocabulary: rows of the token embedding; 0 where a T5 encoder reads the instruction: there is no embedding.
      width, depth, mlp: of the blocks; mlp is the width of the gated hidden layer.
      heads, kv_heads: query heads, and heads of keys and values, each shared by heads / kv_heads
        query heads.
      qkv_bias: query, key and value projections have biases (Qwen2.5 has, Llama has not).
      rope_theta: base of the rotary wavelengths.
      norm_eps: of the RMS norms.
      tied: the output head is the token embedding; otherwise it has a matrix of its own (Llama-2).
      of_depth: blocks of the published model, of which these are the first; None: as many.
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
    tied: bool = True
    of_depth: int | None = None

    def __post_init__(self) -> None:
        """Refuses sizes that do not fit each other."""
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(f"model: language width {self.width} / heads {self.heads} is not an even integer.")
        if self.heads % self.kv_heads:
            raise ValueError(f"model: language heads {self.heads} is not a multiple of kv_heads {self.kv_heads}.")
        if self.of_depth is not None and not 0 < self.depth <= self.of_depth:
            raise ValueError(
                f"model: the first {self.depth} of {self.of_depth} language blocks; give 1 to all of them."
            )


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (arXiv 2106.09685): y = W x + (alpha / rank) B A x on every dense kernel that `targets` names.

    Attributes:
      rank: of the adapters; 0: there are none.
      alpha: numerator of their scale.
      targets: regular expressions; a kernel whose path ("language/blocks/attn/query/kernel") one of them matches from
        its start has an adapter.
    """

    rank: int = 0
    alpha: float = 16.0
    targets: tuple[str, ...] = (r"(dinov2|siglip|clip|language)/blocks", r"bridge/")


@dataclasses.dataclass(frozen=True)
class Build:
    """How the modules of a model are made, whatever their sizes; the attributes are those of `VLAConfig`."""

    dtype: str = "float32"
    scan: bool = True
    remat: Remat = "none"
    cudnn: bool = False
    lora: LoraConfig = LoraConfig()


@dataclasses.dataclass(frozen=True)
class VLAConfig:
    """A whole model.

    Attributes:
      dinov2, siglip, clip, stem: the image towers, at least one; all see every image, and their features stand side by
        side per patch.
      t5: encodes the instruction before the decoder sees it; None: the decoder embeds its tokens itself.
      language: the decoder; the bridge follows from its width and the towers'.
      image_size: height and width of the images in pixels.
      instruction_length: tokens of an instruction, padding included.
      action_dim, proprio_dim: entries of one action and one proprio vector.
      chunk: actions predicted at once.
      head: the action head.
      cameras: names of the images of an observation; camera "wrist" is observation["image_wrist"].
      goal: the task may hold a goal image, task["image_primary"].
      tokenizer: "bytes", or a Hugging Face tokenizer.json (its path) that fits the language model or t5.
      prompt: what the language model is told; "{instruction}" stands for the instruction.
      attention: who sees whom among the decoder's tokens: blockwise, as Octo, with readouts at every timestep;
        causal, as the language model was pretrained; full, as OpenVLA-OFT's parallel decoding.
      lora: adapters on the pretrained kernels.
      dtype: of the activations; parameters are float32 whatever it is.
      scan: blocks of one tower are one stacked leaf and one loop (fast to compile); False: a leaf each, unrolled.
      remat: what the backward pass computes again instead of keeping: nothing, all but matrix products, or all of
        each block.
      cudnn: attention by cuDNN's flash kernels; needs an NVIDIA GPU and dtype bfloat16.
      lr: peak learning rate of fine-tuning, where a run gives none.
    """

    language: LanguageConfig
    image_size: int
    instruction_length: int
    action_dim: int
    proprio_dim: int
    chunk: int
    head: HeadConfig
    dinov2: TowerConfig | None = None
    siglip: TowerConfig | None = None
    clip: TowerConfig | None = None
    stem: StemConfig | None = None
    t5: T5Config | None = None
    cameras: tuple[str, ...] = ("primary",)
    goal: bool = False
    tokenizer: str = "bytes"
    prompt: str = "{instruction}"
    attention: AttentionKind = "blockwise"
    lora: LoraConfig = LoraConfig()
    dtype: Literal["float32", "bfloat16"] = "float32"
    scan: bool = True
    remat: Remat = "none"
    cudnn: bool = False
    lr: float = 3e-4

    @property
    def build(self) -> Build:
        """What its modules share."""
        return Build(self.dtype, self.scan, self.remat, self.cudnn, self.lora)

    @property
    def towers(self) -> dict[str, TowerConfig | StemConfig]:
        """The image towers by name, in the order of the stack."""
        return {name: getattr(self, name) for name in TOWERS if getattr(self, name) is not None}

    @property
    def patch(self) -> int:
        """Side of a patch in pixels, the same for all towers."""
        return next(iter(self.towers.values())).patch

    def __post_init__(self) -> None:
        """Refuses sizes that do not fit each other."""
        if not self.towers:
            raise ValueError(f"model: there is no image tower; give one of {', '.join(TOWERS)}.")
        patches = {tower.patch for tower in self.towers.values()}
        if len(patches) > 1:
            raise ValueError(f"model: the towers' patch sizes {patches} differ; give one.")
        if self.image_size % self.patch:
            raise ValueError(
                f"model: image_size {self.image_size} is no multiple of the patch size {self.patch}; give one that is."
            )
