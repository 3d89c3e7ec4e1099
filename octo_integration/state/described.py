"""Models that no name of ours stands for: their configuration as JSON beside weights and in runs.

weights/mine/model.json         beside what maps-vla import made, and in the directory of a run
merged.model.json               beside merged.safetensors
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from octo_integration.config import FinetuneConfig, differences, from_dict, read_config, to_dict
from octo_integration.model import heads
from octo_integration.model.config import VLAConfig
from octo_integration.model.named import model_config
from octo_integration.state.origin import CHECKPOINTS, end_of, kind, run_of
from octo_integration.weights.imported import read_provenance

MODEL = "model.json"
VERSION = 1
DEFAULT = "tiny"
# Where a tower's features are taken, and from what LayerScale would start, is not of its weights.
FREE = ("features", "layer_scale")


def beside(weights: Path, name: str) -> Path:
    """Where a file of that name is that belongs to weights: in their directory, or "x.name" beside x.safetensors."""
    return weights / name if weights.suffix != ".safetensors" else weights.with_suffix(f".{name}")


def found_beside(weights: str | None, name: str) -> Path | None:
    """The file of that name that came with what `--weights` names; None: there is none."""
    if kind(weights) in ("none", "shipped"):
        return None
    path = beside(run_of(str(weights)), name)
    return path if path.is_file() else None


def record(model: VLAConfig) -> dict[str, Any]:
    """What a MODEL file holds, as JSON."""
    kind = next(kind for kind in heads.HEADS if heads.config_of(kind) is type(model.head))
    return {"version": VERSION, "head": kind, "model": to_dict(model)}


def read_model(path: Path) -> VLAConfig:
    """The configuration that is on file, equal to what it was before `record`.

    Raises:
      ValueError: it is damaged, of another version, or of a model that cannot be.
    """
    try:
        found = json.loads(path.read_text())
        version, kind, values = found["version"], found["head"], dict(found["model"])
        head = values["head"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); import the weights again.") from None
    if version != VERSION:
        raise ValueError(f"{path} is of version {version!r:.20}, this code reads {VERSION}; import the weights again.")
    if not isinstance(kind, str):
        raise ValueError(f"{path}: head is {kind!r:.80}, but should be a name; it is damaged.")
    values["head"] = from_dict(heads.config_of(kind), head, f"{path}: model.head")
    return from_dict(VLAConfig, values, f"{path}: model")


def model_of(config: FinetuneConfig, run: Path | None = None) -> VLAConfig:
    """The model of a run: by its name, as described in its directory or beside its weights, or `tiny`; with its head.

    Args:
      run: its directory, where that exists.

    Raises:
      ValueError: no such model; a description is damaged.
    """
    name, file = name_of(config, run), described(config, run)
    model = read_model(file) if name is None and file is not None else model_config(str(name))
    return model if config.head is None else dataclasses.replace(model, head=heads.other(config.head, model.head))


def name_of(config: FinetuneConfig, run: Path | None = None) -> str | None:
    """The name of a run's model: the given one, that of the run its weights are of, or that they were imported by, or
    `tiny`; None: it is described.
    """
    if config.model is not None:
        return config.model
    if described(config, run) is not None:
        return None
    if kind(config.weights) == "run":
        return read_config(run_of(str(config.weights))).model
    return str(read_provenance(Path(str(config.weights)))["model"]) if kind(config.weights) == "imported" else DEFAULT


def described(config: FinetuneConfig, run: Path | None = None) -> Path | None:
    """The file that describes a run's model, in its directory or beside its weights; None: there is none."""
    files = [None if run is None else run / MODEL, found_beside(config.weights, MODEL)]
    return next((file for file in files if file is not None and file.is_file()), None)


def following(config: FinetuneConfig) -> FinetuneConfig:
    """What `config` leaves open of the model is as in the run that its weights are of, and these are its checkpoint.

    Raises:
      FileNotFoundError, ValueError: they are of a run that is damaged or not finished.
    """
    if kind(config.weights) != "run":
        return config
    end = end_of(str(config.weights))
    first = read_config(end.run)
    pixels = first.data.image_size if config.data.image_size is None else config.data.image_size
    return dataclasses.replace(
        config,
        model=first.model if config.model is None else config.model,
        weights=str(end.run / CHECKPOINTS / str(end.step)),
        head=first.head if config.head is None else config.head,
        instruction_length=config.instruction_length or first.instruction_length,
        data=dataclasses.replace(config.data, image_size=pixels),
    )


def check_computation(config: FinetuneConfig, model: VLAConfig) -> None:
    """Compares what weights were described to compute with what a model computes, where shapes cannot tell.

    Raises:
      ValueError: they differ; names the field.
    """
    file = found_beside(config.weights, MODEL)
    if file is not None:
        theirs = read_model(file)
    elif kind(config.weights) == "run":
        run = run_of(str(config.weights))
        theirs = model_of(read_config(run), run)
    else:
        return
    for name in (*theirs.towers, "t5", "language"):
        ours, other = getattr(model, name), getattr(theirs, name)
        for field, before, now in differences(other, ours, f"{name}.") if ours and other else ():
            if field.rpartition(".")[2] not in FREE:
                raise ValueError(
                    f"weights {config.weights} are of a model with {field}={before!r}, this one has {now!r}; leave out "
                    "--model."
                )
