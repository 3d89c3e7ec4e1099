"""The commands `maps-vla import` and `maps-vla export`: published weights in, fine-tuned weights out."""

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

from octo_integration.common import lock
from octo_integration.config import read_config
from octo_integration.policy.trained import load_run
from octo_integration.state.lora import merge_lora
from octo_integration.state.setup import model_config, model_shapes
from octo_integration.weights.imported import (
    PROVENANCE,
    check_new,
    export_weights,
    import_weights,
    read_provenance,
    restore,
)
from octo_integration.weights.store import save_params

SOURCES = ("dinov2", "siglip", "clip", "t5", "language")


@dataclasses.dataclass(frozen=True)
class ImportConfig:
    """Reads published weights (directories of safetensors, as Hugging Face has them) into a checkpoint of ours.

    maps-vla import --model mini --out weights/mini --dinov2 dinov2-large --siglip siglip-so400m --language qwen2.5-0.5b

    Names of transformers 4 and 5, timm and Prismatic are known. What config.json says of the computation (heads,
    activation, epsilons, rotary base, ...) must be what the model does. Modules without a source stay out; fine-tuning
    makes them anew.
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


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """Writes weights as safetensors: imported ones, or those of a fine-tuning run.

    maps-vla export --run runs/mini-maps --out exported

    What was imported goes back under the names it came with, a directory per module; what fine-tuning made anew goes
    beside it under ours (fresh.safetensors).
    """

    out: str
    """Directory to make."""
    run: str | None = None
    """Run directory of finetune that started from imported weights."""
    step: int | None = None
    """Step of the run's checkpoint; default: the latest."""
    weights: str | None = None
    """Directory that maps-vla import made."""


def run_import(config: ImportConfig) -> str:
    """Imports; returns what came of it, in words."""
    out = Path(config.out)
    sources = {m: Path(path) for m in SOURCES if (path := getattr(config, m)) is not None}
    if config.prismatic is not None and sources:
        raise ValueError(f"import: --prismatic has every module; leave out --{next(iter(sources))}.")
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
    return "\n".join([*lines, f"wrote {config.out}"])


def run_export(config: ExportConfig) -> str:
    """Exports; returns what was written, in words."""
    if (config.run is None) == (config.weights is None):
        raise ValueError("export: give either --run or --weights.")
    out = Path(config.out)
    with lock.held(lock.beside(out), out):
        check_new(out)
        if config.weights is not None:
            record = read_provenance(Path(config.weights))
            params = restore(Path(config.weights), model_shapes(record["model"]))
        else:
            record, params = _trained(Path(str(config.run)), config.step)
        files = export_weights(params, record, out)
        fresh = {module: leaves for module, leaves in params.items() if module not in record["modules"]}
        if fresh:
            files.append(out / "fresh.safetensors")
            save_params(files[-1], fresh)
    return "\n".join(f"wrote {file}" for file in files)


def _trained(run: Path, step: int | None) -> tuple[dict[str, Any], Any]:
    """The provenance of the weights that a run started from, and its parameters, adapters merged."""
    weights = read_config(run).weights
    if weights is None or not (Path(weights) / PROVENANCE).is_file():
        raise ValueError(
            f"export: {run} started from weights {weights!r}, which were not imported, so there are no "
            "names to go back to; its parameters are in its checkpoints."
        )
    record = read_provenance(Path(weights))
    trained = load_run(run, step)
    return record, merge_lora(trained.params, trained.config.lora)
