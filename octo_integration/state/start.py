"""A run goes on from another one's end: its parameters, adapters merged, where the new model has a place for them."""

from typing import Any, NamedTuple

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding, PartitionSpec

from octo_integration.config import read_config
from octo_integration.model.config import FRESH
from octo_integration.state import checkpoint, lora
from octo_integration.state.origin import CHECKPOINTS, End, end_of

Tree = Any
Flat = dict[tuple[str, ...], Any]


class Fit(NamedTuple):
    """What of a checkpoint a model takes.

    Attributes:
      end: the checkpoint.
      saved: its leaves, adapters too, of the modules that the model takes.
      anew: modules of the model whose leaves the checkpoint has not, or in other shapes; none of them is pretrained.
    """

    end: End
    saved: Flat
    anew: tuple[str, ...]


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
    if pretrained := [path for path in differ if path[0] not in FRESH]:
        name = "/".join(pretrained[0])
        theirs, ours = (shapes.get(pretrained[0], "absent") for shapes in (have, want))
        raise ValueError(
            f"weights {weights} are of another model: {name} is {theirs} in the run, {ours} in this one; leave out "
            "--model and --data.image-size, or give those of the run."
        )
    anew = {path[0] for path in differ}
    taken = {path: leaf for path, leaf in saved.items() if path[0] not in anew}
    return Fit(end, taken, tuple(sorted(anew & {path[0] for path in want})))


def read_run(weights: str, like: Tree) -> Tree:
    """The parameters of a run's checkpoint as float32, adapters merged, placed as `like` says; without those modules
    that `fit_of` finds to start anew.

    Args:
      weights, like: as of `fit_of`.
    """
    fit, at = fit_of(weights, like), {path: leaf.sharding for path, leaf in flatten_dict(like).items()}
    kept = next((s for s in at.values() if isinstance(s, NamedSharding)), None)
    whole = None if kept is None else NamedSharding(kept.mesh, PartitionSpec())
    wanted = {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at.get(path, whole))
        for path, leaf in fit.saved.items()
    }
    params = checkpoint.read_params(fit.end.run / CHECKPOINTS, fit.end.step, unflatten_dict(wanted))
    merged = flatten_dict(lora.merge_lora(params, read_config(fit.end.run).lora))
    return unflatten_dict({path: jax.device_put(leaf, at[path]) for path, leaf in merged.items()})


def _shapes(tree: Tree) -> dict[tuple[str, ...], list[int]]:
    return {path: list(leaf.shape) for path, leaf in flatten_dict(tree).items()}
