"""Leaves by path: how every part of the library finds a leaf in a tree of any container type.

A path is the tuple of a leaf's keys as strings, whatever the container (dict, list, tuple, dataclass,
FrozenDict, `nnx.State`), so two trees align by name even where their containers differ.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

Path = tuple[str, ...]

# What can be anchored; 8-bit floats have no promotion to float32. A fingerprint names its dtype by its place here.
DTYPES = ("float32", "bfloat16", "float16", "float64")
# The remedy where updates or gradients have other shapes than their parameters.
AS_GRADIENTS = "give what jax.grad gives for params"
_BOXES = frozenset({"Variable", "VariableState", "AxisMetadata"})


class Flat(NamedTuple):
    """A flattened tree: its leaves with their paths, its structure, and the subtrees masked out of it."""

    paths: list[Path]
    leaves: list[Any]
    treedef: Any
    masked: list[Path]


def is_masked(node: object) -> bool:
    """Whether `node` is the placeholder that `optax.masked` and `multi_transform` put for a leaf."""
    return isinstance(node, optax.MaskedNode)


def flatten(tree: Any) -> Flat:
    """Flattens `tree`, keeping apart the places that Optax's wrappers masked out.

    Raises:
      ValueError: two places have the same path, as keys 1 and "1" do, so that no other tree could be aligned.
    """
    paths, leaves, masked, seen = [], [], [], set()
    for path, leaf in places(tree):
        if path in seen:
            raise ValueError(f"the tree has two leaves {name(path)!r}; rename the key of one.")
        seen.add(path)
        if leaf is None:
            continue
        if is_masked(leaf):
            masked.append(path)
        else:
            paths.append(path)
            leaves.append(leaf)
    return Flat(paths, leaves, jax.tree_util.tree_structure(tree), masked)


def places(tree: Any) -> list[tuple[Path, Any]]:
    """Every leaf of `tree` with its path in flattening order; `None` and `MaskedNode` count as leaves."""
    found: list[tuple[Path, Any]] = []
    for keys, node in jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: _is_place(x) or _is_box(x))[0]:
        path = tuple(map(_key, keys))
        if not _is_box(node):
            found.append((path, node))
            continue
        for inner, child in jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x, node=node: x is not node)[0]:
            if child is node:  # of a flax in which a Variable is a leaf
                found.append((path, node))
            else:  # the attribute that holds the array is a key that no user wrote
                held = () if _key(inner[0]) in ("value", "raw_value") else (_key(inner[0]),)
                found += [((*path, *held, *below), leaf) for below, leaf in places(child)]
    return found


def name(path: Path) -> str:
    """'a/b/c' for messages; the empty path is a tree that is one array."""
    return "/".join(path) if path else "<the only leaf>"


def align(tree: Any, flat: Flat, what: str) -> list[Any]:
    """The leaves of `tree` in the order of `flat`, matched by path.

    `None` and `MaskedNode` count as leaves of `tree`, so they can say "nothing here". Leaves of `tree` under a
    place that is masked out of `flat` are passed over: Optax's wrappers hand on extra arguments unmasked.

    Raises:
      ValueError: a leaf on one side has no partner on the other, or two.
    """
    pairs = places(tree)
    found = dict(pairs)
    if len(found) < len(pairs):
        paths = [path for path, _ in pairs]
        twice = [p for p in flat.paths if paths.count(p) > 1]
        if twice:
            raise ValueError(f"{what} has two leaves {_some(twice)}; rename the key of one.")
    missing = [p for p in flat.paths if p not in found]
    if missing:
        raise ValueError(f"{what} has no leaf {_some(missing)}, which params have; give it the same tree as params.")
    known = set(flat.paths)
    extra = [
        p
        for p, leaf in found.items()
        if p not in known and not is_masked(leaf) and not is_below(p, flat.masked) and leaf is not None
    ]
    if extra:
        raise ValueError(f"{what} has a leaf {_some(extra)}, which params have not; give it the same tree as params.")
    return [found[p] for p in flat.paths]


def check_shape(given: Any, wanted: Any, path: Path, what: str, remedy: str) -> None:
    """Refuses what would be broadcast to the leaf at `path`.

    Raises:
      ValueError: the two shapes differ.
    """
    if np.shape(given) != np.shape(wanted):
        raise ValueError(
            f"{what} of leaf {name(path)!r} has shape {np.shape(given)}, but the leaf has {np.shape(wanted)}; {remedy}."
        )


def is_below(path: Path, places: Sequence[Path]) -> bool:
    """Whether `path` is one of the places, or lies below one."""
    return any(path[: len(place)] == place for place in places)


def unflatten(flat: Flat, leaves: Sequence[Any]) -> Any:
    """The inverse of `flatten` with other leaves (`MaskedNode` where a leaf has none)."""
    return jax.tree_util.tree_unflatten(flat.treedef, list(leaves))


def replace_states(tree: Any, kinds: tuple[type, ...], change: Callable[[Any], Any]) -> Any:
    """`tree` with `change` applied to every state of the given kinds, wherever wrappers have nested it.

    Raises:
      ValueError: there is none.
    """
    count = 0

    def visit(node: Any) -> Any:
        nonlocal count
        if not isinstance(node, kinds):
            return node
        count += 1
        return change(node)

    changed = jax.tree_util.tree_map(visit, tree, is_leaf=lambda x: isinstance(x, kinds))
    if not count:
        names = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(
            f"this tree holds no {names}; give the state, as init returns it, of an optimizer built with mx.maps, "
            "mx.spd or mx.l2_sp (of an nnx.Optimizer its opt_state, not nnx.state(optimizer))."
        )
    return changed


def _is_place(node: object) -> bool:
    return node is None or is_masked(node)


def _is_box(node: object) -> bool:
    """Whether `node` is flax's box around one array: a Variable of nnx, its state, or linen's partitioning metadata.

    Told by the names of its classes, since flax need not be here.
    """
    return any(c.__name__ in _BOXES and c.__module__.split(".")[0] == "flax" for c in type(node).__mro__)


def _key(key: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def _some(paths: Sequence[Path]) -> str:
    shown = ", ".join(repr(name(p)) for p in paths[:3])
    return shown if len(paths) <= 3 else f"{shown} and {len(paths) - 3} more"
