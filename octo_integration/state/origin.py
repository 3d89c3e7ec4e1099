"""What `--weights` names: shipped weights, a run or a checkpoint of it, what was imported, or a file."""

import dataclasses
import importlib.resources
from pathlib import Path
from typing import Any, Literal, NamedTuple

from octo_integration.config import FinetuneConfig, read_config
from octo_integration.state import whole
from octo_integration.weights.imported import PROVENANCE

Kind = Literal["none", "shipped", "run", "imported", "file"]
CHECKPOINTS = "checkpoints"


class End(NamedTuple):
    """A checkpoint of a run that another one starts from."""

    run: Path
    step: int


def kind(weights: str | None) -> Kind:
    """What a name or path stands for; a name of shipped weights is theirs whatever lies in this directory."""
    if weights is None:
        return "none"
    if shipped(weights) is not None:
        return "shipped"
    if (run_of(weights) / "config.json").is_file():
        return "run"
    return "imported" if (Path(weights) / PROVENANCE).is_file() else "file"


def shipped(weights: str) -> Any:
    """The file of shipped weights, None where no such name is shipped."""
    if Path(weights).name != weights:
        return None
    file = importlib.resources.files("octo_integration") / "assets" / f"{weights}.safetensors"
    return file if file.is_file() else None


def run_of(weights: str) -> Path:
    """The run directory: RUN of RUN and of RUN/checkpoints/STEP."""
    path = Path(weights)
    return path.parent.parent if path.parent.name == CHECKPOINTS and path.name.isdecimal() else path


def end_of(weights: str) -> End:
    """The checkpoint that is meant: the last one of a run that has ended, or the one that is named.

    Raises:
      FileNotFoundError, ValueError: there is none, it is torn, or the run has not ended.
    """
    run = run_of(weights)
    try:
        last = read_config(run).optimizer.steps
    except ValueError:
        if not (run / "weights.safetensors").is_file():
            raise
        raise ValueError(f"{run} is a run of pretrain; give its {run}/weights.safetensors.") from None
    steps = whole.steps_in(run / CHECKPOINTS)
    newest = steps[0] if steps else 0
    step = newest if Path(weights) == run else int(Path(weights).name)
    if Path(weights) != run and step not in steps:
        raise FileNotFoundError(f"there is no checkpoint {weights}; {run} has {steps}.")
    if step < last and Path(weights) == run:
        raise ValueError(
            f"{run} is not finished: it is at step {newest} of {last}; run it to its end, or give one of its "
            f"checkpoints as it is, {run}/{CHECKPOINTS}/STEP."
        )
    if (what := whole.damage(run / CHECKPOINTS / str(step))) is not None:
        raise ValueError(f"checkpoint {run}/{CHECKPOINTS}/{step} is torn: {what}; resume {run}, which makes it again.")
    return End(run, step)


def anchor_of(config: FinetuneConfig) -> FinetuneConfig:
    """The same with the weights, and their seed, that are theta0 as `anchor_weights` tells.

    Raises:
      FileNotFoundError, ValueError: a run that led to it is not there; there is none; it has no positions for images
        of this size.
    """
    if config.anchor_weights == "start":
        return config
    if kind(config.weights) != "run":
        raise ValueError(f"anchor_weights is original, but {config.weights} is no run; leave --anchor-weights out.")
    if config.lora.rank:
        raise ValueError(
            "anchor_weights is original, but adapters are held near the frozen weights beside them, which are where "
            "this run starts; leave --anchor-weights or --lora.rank out."
        )
    first = original(config)
    if first.weights is None and first.data.image_size != config.data.image_size:
        raise ValueError(
            f"anchor_weights is original, but {config.weights} goes back to a random start at images of "
            f"{first.data.image_size} pixels, which has no positions for {config.data.image_size}; leave "
            "--anchor-weights or --data.image-size out."
        )
    return dataclasses.replace(config, weights=first.weights, seed=first.seed)


def original(config: FinetuneConfig) -> FinetuneConfig:
    """The config of the first of the runs that led to this one, by way of `--weights`."""
    seen: list[Path] = []
    while kind(weights := config.weights) == "run" and weights is not None:
        if run_of(weights).resolve() in seen:
            raise ValueError(f"{weights} has itself among the runs that led to it; one of them was replaced.")
        seen.append(run_of(weights).resolve())
        config = read_config(run_of(weights))
    return config
