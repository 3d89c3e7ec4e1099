"""`maps-vla import`: published weights in."""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from octo_integration.cli.following import say_next
from octo_integration.common import limits, lock
from octo_integration.common.limits import check_limits
from octo_integration.model.config import PRETRAINED, VLAConfig
from octo_integration.model.named import model_config, shapes_of
from octo_integration.model.tokenizer import load_tokenizer, vocabulary_of
from octo_integration.state import described
from octo_integration.state.described import MODEL
from octo_integration.weights.imported import NO_SOURCE, TOKENIZER, import_weights, open_sources
from octo_integration.weights.sources import model_from

SOURCES = ("dinov2", "siglip", "clip", "t5", "language")
PRISMATIC = "mini"  # what --prismatic holds, where no --model says it


@dataclasses.dataclass(frozen=True)
class Options:
    """Reads published weights (directories of safetensors, as Hugging Face has them) into a checkpoint of ours.

    maps-vla import --dinov2 dinov2-small --language SmolLM2-135M --out weights/mine
    maps-vla import --model mini --out weights/mini --dinov2 dinov2-large --siglip vit_so400m --language qwen2.5-0.5b

    Without --model, the model is what config.json of the sources says: any size of DINOv2, SigLIP and CLIP, one or
    more of them with one patch size, and of a language model of the Llama or Qwen2 kind. It is written beside the
    weights, and finetune --weights needs no --model. With it, what config.json says of the computation (heads,
    activation, epsilons, rotary base, ...) must be what that model does; SigLIP of mini and openvla is timm's, with the
    exact GELU. Names of transformers 4 and 5, timm and Prismatic are known. Modules without a source stay out;
    fine-tuning makes them anew.
    """

    out: str
    """Directory to make; `maps-vla finetune --weights` takes it."""
    model: str | None = None
    """Name of the model's configuration; None: what the sources say, of --prismatic mini."""
    image_size: int | None = None
    """Height and width of the images in pixels, which positions are resampled for when they are read (finetune's
    --data.image-size can give another); None: the named model's, or 224."""
    language_layers: int | None = None
    """Without --model: how many of the language model's blocks to take, the first; None: all."""
    dinov2: str | None = None
    """DINOv2, with registers or (where the model has none) without."""
    siglip: str | None = None
    """SigLIP, whole or its vision tower."""
    clip: str | None = None
    """CLIP, whole or its vision tower."""
    t5: str | None = None
    """T5, whole or its encoder."""
    language: str | None = None
    """A language model of the Qwen2 or Llama kind, with its tokenizer.json."""
    prismatic: str | None = None
    """A whole Prismatic checkpoint (MiniVLA, OpenVLA) with all its modules."""

    def __post_init__(self) -> None:
        """Refuses numbers that make no sense."""
        check_limits(self, dict.fromkeys(("image_size", "language_layers"), limits.AT_LEAST_1))


def run(config: Options) -> int:
    """Imports, and prints what came of it."""
    out = Path(config.out)
    sources = {m: Path(path) for m in SOURCES if (path := getattr(config, m)) is not None}
    if config.prismatic is not None and sources:
        raise ValueError(f"--prismatic has every module; leave out --{next(iter(sources))}.")
    whole = None if config.prismatic is None else Path(config.prismatic)
    model, vocabulary = _model(config, sources, whole)
    name = config.model or (PRISMATIC if whole is not None else out.name)
    with lock.held(lock.beside(out), out):
        files = {MODEL: described.record(model)}
        record = import_weights(name, model, shapes_of(model), sources, out, whole, files)
    lines = [f"model: {sum(map(math.prod, _sizes(shapes_of(model)))) / 1e6:.1f} M parameters"]
    for module, origin in record["modules"].items():
        lines.append(f"{module}: {len(origin['shapes'])} tensors, {origin['format']} names")
        lines += _resampled(module, origin, model)
        lines += [f"  {copy} repeats {original}" for copy, original in origin["copies"].items()]
        lines += [f"  {count} ignored: {why}" for why, count in Counter(origin["ignored"].values()).items()]
    lines.append(f"without a source, so made anew by fine-tuning: {', '.join(record['fresh']) or 'none'}")
    print("\n".join([*lines, *vocabulary, f"wrote {config.out}"]))
    say_next(("finetune", "--out", f"runs/{out.name}", "--weights", config.out))
    return 0


def _model(config: Options, sources: Mapping[str, Path], whole: Path | None) -> tuple[VLAConfig, list[str]]:
    """The model to import into, and what is to be said of its words."""
    opened = open_sources(sources, whole)
    made = config.model is None and whole is None
    if made:
        if not sources:
            raise ValueError(NO_SOURCE)
        checkpoints = {module: checkpoint for module, (checkpoint, _) in opened.items()}
        model = model_from(checkpoints, config.image_size, config.language_layers)
    else:
        if config.language_layers is not None:
            raise ValueError("--language-layers is for a model that the sources say; leave out it or --model.")
        model = model_config(config.model or PRISMATIC)
        model = dataclasses.replace(model, image_size=config.image_size or model.image_size)
    reader = next((module for module in ("language", "t5") if module in opened), None)
    if reader is None:
        return model, []
    rows, file = (model.t5 or model.language).vocabulary, opened[reader][0].directory / TOKENIZER
    if not file.is_file():
        if made:
            raise ValueError(f"there is no {file}; save it there (save_pretrained of transformers' tokenizer does).")
        return model, []
    load_tokenizer(str(file), model.instruction_length, model.prompt, rows)
    return model, [f"tokenizer: {vocabulary_of(str(file))} tokens, the embedding has {rows} rows"]


def _sizes(shapes: Any) -> Iterator[tuple[int, ...]]:
    """Of all leaves of the pretrained modules."""
    for module in shapes.keys() & set(PRETRAINED):
        yield from (leaf.shape for leaf in jax.tree.leaves(shapes[module]))


def _resampled(module: str, origin: Mapping[str, Any], model: VLAConfig) -> list[str]:
    """What is to be said of a tower's positions."""
    wanted, there = model.image_size // model.patch, origin["patches"]
    if not there or there == wanted**2:
        return []
    side = math.isqrt(there)
    return [f"  positions of {side} x {side} patches, resampled to {wanted} x {wanted} where they are read"]
