"""λ of every tensor for a point of the study: schedules over the stack, and over stacks in another order."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

import maps_optax as mx
from benchmarks.generalization.methods import Point

Tree = Any
SHUFFLE_SEED = 0

# (module, block, k of the paper) in the paper's order -> the new k, dense from 1.
Places = list[tuple[str, int, int]]


def _paper(places: Places) -> list[int]:
    return [k for _, _, k in places]


def _reversed(places: Places) -> list[int]:
    return [len(places) + 1 - k for _, _, k in places]


def _shuffled(places: Places) -> list[int]:
    return (1 + np.random.default_rng(SHUFFLE_SEED).permutation(len(places))).tolist()


def _swapped(places: Places) -> list[int]:
    rank = {"siglip": 0, "dinov2": 1}
    order = sorted(places, key=lambda place: (rank.get(place[0], 2), place[2]))
    return [1 + order.index(place) for place in places]


def _parallel(places: Places) -> list[int]:
    """DINOv2's and SigLIP's block i at one place: both are as far from the images."""
    towers = 1 + max(block for module, block, _ in places if module in ("dinov2", "siglip"))
    later = [place for place in places if place[0] not in ("dinov2", "siglip")]
    return [
        1 + block if module in ("dinov2", "siglip") else 1 + towers + later.index((module, block, k))
        for module, block, k in places
    ]


def _modules(places: Places) -> list[int]:
    names = list(dict.fromkeys(module for module, _, _ in places))
    return [1 + names.index(module) for module, _, _ in places]


ORDERS: Mapping[str, Callable[[Places], list[int]]] = {
    "paper": _paper,
    "reversed": _reversed,
    "shuffled": _shuffled,
    "swapped": _swapped,
    "parallel": _parallel,
    "modules": _modules,
}


def positions(order: str, params: Tree) -> Tree:
    """The place of every tensor of `params` (arrays or shapes) in the stack, as `mx.strengths` takes it."""
    rows = mx.slices(mx.presets.vla(), params)
    places: Places = sorted(
        {(row.module, int(row.block or 0), row.position) for row in rows if row.position is not None},
        key=lambda place: place[2],
    )
    new = dict(zip((k for _, _, k in places), ORDERS[order](places), strict=True))
    found: dict[str, Any] = {}
    for row in rows:
        place = None if row.position is None else new[row.position]
        if row.row is None:
            found[row.path] = place
        else:
            found.setdefault(row.path, []).append(place)

    def of(path: Any, leaf: Any) -> Any:
        del leaf
        value = found["/".join(_keys(path))]
        return np.array(value) if isinstance(value, list) else value

    return jax.tree_util.tree_map_with_path(of, params)


def strength_tree(point: Point, params: Tree) -> Tree:
    """λ of every tensor: f32[] or f32[n] where a leaf stacks n layers, None where there is no pretrained value.

    A λ of 0 stays a number, so that all points have trees of one structure.
    """
    places = positions(point.order, params)
    values = mx.strengths(places, params, point.lambda_max, point.schedule)

    def of(path: Any, place: Any, value: Any) -> Any:
        held = not point.held or _keys(path)[0] in point.held
        return None if place is None else np.asarray(value if held else np.zeros_like(value), np.float32)

    return jax.tree_util.tree_map_with_path(of, places, values, is_leaf=lambda x: x is None)


def rate_tree(point: Point, params: Tree) -> Tree:
    """What the learning rate of every tensor is multiplied by; of stacked layers f32[n, 1, ...], to broadcast.

    1 where there is no pretrained value; backbone · layer_decay^(layers that follow) elsewhere.
    """
    places = positions("paper", params)
    last = max(int(np.max(place)) for place in jax.tree.leaves(places))

    def of(place: Any, leaf: Any) -> Any:
        if place is None:
            return np.float32(1)
        value = np.asarray(point.backbone * point.layer_decay ** (last - np.asarray(place)), np.float32)
        return value.reshape(value.shape + (1,) * (leaf.ndim - value.ndim)) if value.ndim else value

    return jax.tree.map(of, places, params, is_leaf=lambda x: x is None)


def adapter_tree(point: Point, params: Tree) -> Tree:
    """λ of every adapter, at its lora_a: that of the kernel beside it. None elsewhere."""
    found = {
        _keys(path): value for path, value in jax.tree_util.tree_flatten_with_path(strength_tree(point, params))[0]
    }

    def of(path: Any, leaf: Any) -> Any:
        del leaf
        keys = _keys(path)
        return found[keys[:-1] + ("kernel",)] if keys[-1] == "lora_a" else None

    return jax.tree_util.tree_map_with_path(of, params)


def _keys(path: Any) -> tuple[str, ...]:
    return tuple(str(key.key) for key in path)


def mean_strength(tree: Tree, params: Tree) -> float:
    """The mean λ over the parameters that have a pretrained value."""
    total, count = 0.0, 0
    values = jax.tree.leaves(tree, is_leaf=lambda x: x is None)
    for value, leaf in zip(values, jax.tree.leaves(params), strict=True):
        if value is not None:
            total += float(np.mean(value)) * leaf.size
            count += leaf.size
    return total / count
