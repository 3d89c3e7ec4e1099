"""`maps-vla export`: fine-tuned weights out, under the names that they came with."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from octo_integration.common import lock
from octo_integration.config import read_config
from octo_integration.policy.trained import load_run
from octo_integration.state.lora import merge_lora
from octo_integration.weights.imported import (
    POSITIONS,
    PROVENANCE,
    check_new,
    export_weights,
    read_provenance,
    restore,
    stored_shapes,
)
from octo_integration.weights.store import save_params


@dataclasses.dataclass(frozen=True)
class Options:
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


def run(config: Options) -> int:
    """Exports, and prints what was written."""
    if (config.run is None) == (config.weights is None):
        raise ValueError("give either --run or --weights.")
    out = Path(config.out)
    with lock.held(lock.beside(out), out):
        check_new(out)
        if config.weights is not None:
            record = read_provenance(Path(config.weights))
            params = restore(Path(config.weights), stored_shapes(Path(config.weights)))
        else:
            record, params = _trained(Path(str(config.run)), config.step)
        files = export_weights(params, record, out)
        fresh = {module: leaves for module, leaves in params.items() if module not in record["modules"]}
        if fresh:
            files.append(out / "fresh.safetensors")
            save_params(files[-1], fresh)
    print("\n".join([*(f"wrote {file}" for file in files), *_resampled(record, params)]))
    return 0


def _resampled(record: Mapping[str, Any], params: Any) -> list[str]:
    """What is not of the size that it came with."""
    said = []
    for module, origin in record["modules"].items():
        now = len(params[module][POSITIONS]) if POSITIONS in params[module] else 0
        if now != origin.get("patches", now):
            said.append(
                f"{module}: positions of {now} patches, resampled from the {origin['patches']} that were imported"
            )
    return said


def _trained(run: Path, step: int | None) -> tuple[dict[str, Any], Any]:
    """The provenance of the weights that a run started from, and its parameters, adapters merged."""
    weights = read_config(run).weights
    if weights is None or not (Path(weights) / PROVENANCE).is_file():
        raise ValueError(
            f"{run} started from weights {weights!r}, which were not imported, so there are no "
            "names to go back to; its parameters are in its checkpoints."
        )
    record = read_provenance(Path(weights))
    trained = load_run(run, step)
    return record, merge_lora(trained.params, trained.config.lora)
