"""`maps-vla export`: weights out, under the names that they came with, or ours."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from octo_integration.cli.following import say_next
from octo_integration.cli.own_names import save_run
from octo_integration.common import lock
from octo_integration.config import read_config
from octo_integration.policy.trained import checkpoint_of, load_run
from octo_integration.state.lora import merge_lora
from octo_integration.state.origin import end_of, kind
from octo_integration.train.run_directory import recorded_start
from octo_integration.weights.imported import check_new, export_weights, read_provenance, restore, stored_shapes
from octo_integration.weights.positions import POSITIONS
from octo_integration.weights.store import save_params

WHOLE = "weights.safetensors"


@dataclasses.dataclass(frozen=True)
class Options:
    """Writes weights as safetensors: those of a fine-tuning run, adapters merged, or imported ones.

    maps-vla export --run runs/mini-maps --out exported

    What was imported goes back under the names it came with, a directory per module; what fine-tuning made anew goes
    beside it under ours (fresh.safetensors). A run that goes back to no imported weights is one file under our names
    (weights.safetensors), with its model beside it, which finetune takes as --weights.
    """

    out: str
    """Directory to make."""
    run: str | None = None
    """Run directory of finetune."""
    step: int | None = None
    """Step of the run's checkpoint; default: the latest."""
    weights: str | None = None
    """Directory that maps-vla import made, or a run that is finished."""


def run(config: Options) -> int:
    """Exports, and prints what was written."""
    if (config.run is None) == (config.weights is None):
        raise ValueError("give either --run or --weights.")
    out, weights = Path(config.out), str(config.weights)
    with lock.held(lock.beside(out), out):
        check_new(out)
        if config.run is not None:
            _run(Path(config.run), config.step, out)
        elif kind(weights) == "run":
            _run(*end_of(weights), out)
        else:
            directory = Path(weights)
            record = read_provenance(directory)
            _under_their_names(restore(directory, stored_shapes(directory)), record, out)
    return 0


def _run(run: Path, step: int | None, out: Path) -> None:
    """Of a run: the names are those of the weights that it, or the first of the runs before it, started from."""
    start = recorded_start(run)
    weights = read_config(run).weights if start is None else start["original_weights"]
    if kind(weights) == "imported":
        record = read_provenance(Path(str(weights)))
        trained = load_run(run, step)
        _under_their_names(merge_lora(trained.params, trained.config.lora), record, out)
        return
    if kind(weights) == "file" and Path(str(weights)).suffix != ".safetensors":
        raise FileNotFoundError(
            f"{run} goes back to weights {weights}, which are not there; they say what the tensors were called, so put "
            "them there."
        )
    wrote = save_run(out / WHOLE, run, load_run(run, step), {"step": str(checkpoint_of(run, step))})
    print("\n".join(f"wrote {file}" for file in wrote))
    say_next(("finetune", "--out", f"runs/{out.name}", "--weights", str(wrote[0])))


def _under_their_names(params: Any, record: Mapping[str, Any], out: Path) -> None:
    files = export_weights(params, record, out)
    fresh = {module: leaves for module, leaves in params.items() if module not in record["modules"]}
    if fresh:
        files.append(out / "fresh.safetensors")
        save_params(files[-1], fresh)
    print("\n".join([*(f"wrote {file}" for file in files), *_resampled(record, params)]))


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
