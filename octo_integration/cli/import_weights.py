"""`maps-vla import`: published weights in."""

import dataclasses
from collections import Counter
from pathlib import Path

from octo_integration.cli.following import say_next
from octo_integration.common import lock
from octo_integration.model.named import model_config, model_shapes
from octo_integration.weights.imported import import_weights

SOURCES = ("dinov2", "siglip", "clip", "t5", "language")


@dataclasses.dataclass(frozen=True)
class Options:
    """Reads published weights (directories of safetensors, as Hugging Face has them) into a checkpoint of ours.

    maps-vla import --model mini --out weights/mini --dinov2 dinov2-large --siglip vit_so400m --language qwen2.5-0.5b

    Names of transformers 4 and 5, timm and Prismatic are known. What config.json says of the computation (heads,
    activation, epsilons, rotary base, ...) must be what the model does. SigLIP of mini and openvla is timm's, with the
    exact GELU. Modules without a source stay out; fine-tuning makes them anew.
    """

    out: str
    """Directory to make; `maps-vla finetune --weights` takes it."""
    model: str = "mini"
    """Name of the model's configuration."""
    dinov2: str | None = None
    """DINOv2, with registers or (where the model has none) without."""
    siglip: str | None = None
    """SigLIP, whole or its vision tower."""
    clip: str | None = None
    """CLIP, whole or its vision tower."""
    t5: str | None = None
    """T5, whole or its encoder."""
    language: str | None = None
    """Qwen2.5 or Llama-2."""
    prismatic: str | None = None
    """A whole Prismatic checkpoint (MiniVLA, OpenVLA) with all its modules."""


def run(config: Options) -> int:
    """Imports, and prints what came of it."""
    out = Path(config.out)
    sources = {m: Path(path) for m in SOURCES if (path := getattr(config, m)) is not None}
    if config.prismatic is not None and sources:
        raise ValueError(f"--prismatic has every module; leave out --{next(iter(sources))}.")
    whole = None if config.prismatic is None else Path(config.prismatic)
    shapes = model_shapes(config.model)
    with lock.held(lock.beside(out), out):
        record = import_weights(config.model, model_config(config.model), shapes, sources, out, whole)
    lines = []
    for module, origin in record["modules"].items():
        lines.append(f"{module}: {len(origin['shapes'])} tensors, {origin['format']} names")
        lines += [f"  {copy} repeats {original}" for copy, original in origin["copies"].items()]
        lines += [f"  {count} ignored: {why}" for why, count in Counter(origin["ignored"].values()).items()]
    lines.append(f"without a source, so made anew by fine-tuning: {', '.join(record['fresh']) or 'none'}")
    print("\n".join([*lines, f"wrote {config.out}"]))
    say_next(("finetune", "--out", f"runs/{config.model}", "--model", config.model, "--weights", config.out))
    return 0
