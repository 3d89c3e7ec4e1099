"""A run goes on from another one's end: its parameters, adapters merged, where the new model has a place for them."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding, PartitionSpec

from octo_integration.config import read_config
from octo_integration.model.config import FRESH
from octo_integration.state import checkpoint, lora
from octo_integration.state.origin import CHECKPOINTS, End, end_of, kind, original
from octo_integration.weights.imported import antialias, read_provenance
from octo_integration.weights.positions import resamplable, resample

Tree = Any
Flat = dict[tuple[str, ...], Any]


class Fit(NamedTuple):
    """What of a checkpoint a model takes.

    Attributes:
      end: the checkpoint.
      saved: its leaves, adapters too, of the modules that the model takes.
      anew: modules of the model whose leaves the checkpoint has not, or in other shapes; none of them is pretrained.
      resampled: positions of another image size -> the model's shape.
    """

    end: End
    saved: Flat
    anew: tuple[str, ...]
    resampled: dict[tuple[str, ...], tuple[int, ...]]


def fit_of(weights: str, like: Tree) -> Fit:
    """Compares a run's checkpoint with a model, without reading a tensor.

    Args:
      weights: as `--weights` names it.
      like: the model's parameters without adapters, as shapes.

    Raises:
      FileNotFoundError, ValueError: there is none, it is damaged or not finished, or of another model.
    """
    end = end_of(weights)
    named = checkpoint.saved_params(end.run / CHECKPOINTS, end.step)
    saved: Flat = {tuple(name.split("/")[1:]): leaf for name, leaf in named.items()}
    have, want = (_shapes(tree) for tree in (lora.base(unflatten_dict(saved)), like))
    differ = [path for path in sorted(have.keys() | want.keys()) if have.get(path) != want.get(path)]
    both = [path for path in differ if path in have and path in want]
    resampled = {path: want[path] for path in both if resamplable(path[-1], have[path], want[path])}
    differ = [path for path in differ if path not in resampled]
    if pretrained := [path for path in differ if path[0] not in FRESH]:
        name = "/".join(pretrained[0])
        theirs, ours = (list(shapes[pretrained[0]]) if pretrained[0] in shapes else "absent" for shapes in (have, want))
        raise ValueError(
            f"weights {weights} are of another model: {name} is {theirs} in the run, {ours} in this one; leave out "
            "--model, or give that of the run."
        )
    anew = {path[0] for path in differ}
    taken = {path: leaf for path, leaf in saved.items() if path[0] not in anew}
    return Fit(end, taken, tuple(sorted(anew & {path[0] for path in want})), resampled)


def read_run(weights: str, like: Tree) -> Tree:
    """The parameters of a run's checkpoint as float32, adapters merged, placed as `like` says; without those modules
    that `fit_of` finds to start anew, and with positions resampled where the images are of another size.

    Args:
      weights, like: as of `fit_of`.

    Raises:
      FileNotFoundError: what tells how positions are to be resampled is not there.
    """
    fit, at = fit_of(weights, like), {path: leaf.sharding for path, leaf in flatten_dict(like).items()}
    kept = next((s for s in at.values() if isinstance(s, NamedSharding)), None)
    whole = None if kept is None else NamedSharding(kept.mesh, PartitionSpec())
    wanted = {
        path: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=whole if path in fit.resampled else at.get(path, whole)
        )
        for path, leaf in fit.saved.items()
    }
    params = checkpoint.read_params(fit.end.run / CHECKPOINTS, fit.end.step, unflatten_dict(wanted))
    merged = flatten_dict(lora.merge_lora(params, read_config(fit.end.run).lora))
    for path, shape in fit.resampled.items():
        table = np.asarray(merged[path].addressable_data(0))
        merged[path] = resample(table, shape[0], _antialias(fit.end.run, path[0]))
    return unflatten_dict({path: jax.device_put(leaf, at[path]) for path, leaf in merged.items()})


def told(fit: Fit) -> list[str]:
    """A line for each table of positions that is resampled."""
    sides = {
        path: [math.isqrt(shape[0]) for shape in (fit.saved[path].shape, wanted)]
        for path, wanted in fit.resampled.items()
    }
    return [
        f"{path[0]}: positions of {before} x {before} patches, resampled to {after} x {after}"
        for path, (before, after) in sides.items()
    ]


def _antialias(run: Path, module: str) -> bool:
    """As the family of the weights does it from which the first of the runs started; as timm, where they are ours."""
    weights = original(read_config(run)).weights
    if kind(weights) == "imported":
        return antialias(read_provenance(Path(str(weights))), module)
    if kind(weights) == "file" and not Path(str(weights)).exists():
        raise FileNotFoundError(
            f"{run} goes back to the weights {weights}, which are not there, and how positions are resampled depends "
            "on their family; put them there, or leave out --data.image-size."
        )
    return True


def _shapes(tree: Tree) -> dict[tuple[str, ...], tuple[int, ...]]:
    return {path: tuple(leaf.shape) for path, leaf in flatten_dict(tree).items()}
