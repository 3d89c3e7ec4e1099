"""What a run directory holds beside checkpoints and logs, and whether a config may go on in it."""

import importlib.metadata
import json
import shutil
from pathlib import Path
from typing import Any

from octo_integration.common import files
from octo_integration.config import FinetuneConfig, differences, read_config, read_versions, to_dict
from octo_integration.data import MixtureStatistics, Statistics, mapping
from octo_integration.processes import flags
from octo_integration.state.described import MODEL, described, read_model, record
from octo_integration.state.origin import kind, original
from octo_integration.state.setup import find_tokenizer
from octo_integration.state.start import fit_of, told
from octo_integration.weights.imported import TOKENIZER

Tree = Any

# Fields that may differ from those the run was started with; all others would make it another run.
MAY_CHANGE = (
    "out",
    "maps.",
    "mesh.",
    "optimizer.steps",
    "eval_splits",
    "log.",
    "log_every",
    "eval_every",
    "save_every",
    "keep",
    "nan_policy",
    "max_skips",
)
START = "start.json"
START_FIELDS = ("run", "step", "adapters_merged", "anew", "original_weights", "anchor_weights")
PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")


def check_same_run(out: Path, config: FinetuneConfig) -> list[str]:
    """What changes in the run that `out` holds, a line each; none where it holds no run yet.

    Raises:
      ValueError: the config is that of another run; names the first field that differs.
    """
    if not (out / "config.json").exists():
        return []
    flags.check_flags(out, read_versions(out))
    notes = []
    for name, before, now in differences(read_config(out), config):
        alike = name == "maps.adapters" and {before, now} == {"init", "zero"}  # their anchors, in a checkpoint
        if alike or not name.startswith(MAY_CHANGE):
            raise ValueError(
                f"{out} holds a run with {name}={before!r}, this one has {now!r}; choose another --out, or the same "
                "value."
            )
        notes.append(f"note: {name} was {before!r}, goes on with {now!r}")
    now_described = described(config)
    if config.model is None and now_described is not None and (out / MODEL).is_file():
        changed = differences(read_model(out / MODEL), read_model(now_described))
        if changed:
            name, before, now = changed[0]
            raise ValueError(f"{out} holds a run of a model with {name}={before!r}, {now_described} has {now!r}.")
    return notes


def read_start(config: FinetuneConfig, like: Tree, out: Path) -> dict[str, Any] | None:
    """Where a run on the weights of another one begins, as START has it; None: it is no such run.

    Args:
      like: the parameters without adapters, as shapes.
    """
    if (found := recorded_start(out)) is not None:
        return found
    if kind(config.weights) != "run":
        return None
    fit = fit_of(str(config.weights), like)
    return {
        "run": str(fit.end.run),
        "step": fit.end.step,
        "adapters_merged": read_config(fit.end.run).lora.rank > 0,
        "anew": list(fit.anew),
        "resampled": told(fit),
        "original_weights": original(config).weights,
        "anchor_weights": config.anchor_weights,
    }


def recorded_start(run: Path) -> dict[str, Any] | None:
    """What START of a run holds; None: it began at no other run.

    Raises:
      ValueError: it is damaged.
    """
    if not (run / START).is_file():
        return None
    try:
        found = json.loads((run / START).read_text())
        return {"resampled": found.get("resampled", []), **{name: found[name] for name in START_FIELDS}}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{run / START} is damaged ({error}).") from None


def started(origin: dict[str, Any] | None) -> list[str]:
    """What is to be said of `read_start`."""
    if origin is None:
        return []
    first = origin["original_weights"] or "the random start of the first run"
    held = "there" if origin["anchor_weights"] == "start" else f"from {first}"
    merged = ", its adapters merged" if origin["adapters_merged"] else ""
    said = [f"starts from {origin['run']} at step {origin['step']}{merged}; drift is measured {held}"]
    said += origin["resampled"]
    return [*said, *(f"{module} starts anew: it has other shapes in {origin['run']}" for module in origin["anew"])]


def describe_run(
    out: Path,
    config: FinetuneConfig,
    statistics: Statistics | MixtureStatistics,
    origin: dict[str, Any] | None = None,
) -> None:
    """What a policy needs beside the checkpoint: config.json with the versions, statistics.json, tokenizer.json,
    model.json where no name says the model, and the mapping of its data; START where it began at another run.
    """
    versions = {name: importlib.metadata.version(name) for name in PACKAGES} | flags.flags()
    files.write_json(out / "config.json", {**to_dict(config), "versions": versions})
    if config.model is None and (model := described(config, out)) is not None:
        files.write_json(out / MODEL, record(read_model(model)))
    if (tokenizer := find_tokenizer(config)) is not None:
        with files.replacing(out / TOKENIZER) as temporary:
            shutil.copyfile(tokenizer, temporary)
    if mapping.is_mapping(config.data.standardize):
        with files.replacing(out / mapping.COPY) as temporary:
            shutil.copyfile(config.data.standardize, temporary)
    if origin is not None:
        files.write_json(out / START, origin)
    files.write_json(out / "statistics.json", json.loads(statistics.to_json()))
