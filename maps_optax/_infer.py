"""The stack read off the model itself: which layer comes before which, from a traced forward pass."""

import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Optional

from maps_optax import _flow, _tree
from maps_optax._layers import LayerStack, _compile

_NUMBERED = re.compile(r"(.*?)(\d+)")


class _Blocks(NamedTuple):
    """Repeated blocks, side by side in the tree: numbered, or stacked along axis 0 for a scan.

    Attributes:
      prefix: the path that they share.
      stems: what stands before their numbers in the key after it; empty: stacked.
      leaves: numbers of their leaves.
    """

    prefix: _tree.Path
    stems: tuple[str, ...]
    leaves: frozenset[int]


def infer_layers(apply_fn: Callable[..., Any], params: Any, *inputs: Any, free: Sequence[str] = ()) -> LayerStack:
    """Proposes the `LayerStack` of a model from its forward pass, for a person to look at and edit.

    The pass is traced by shapes alone. Leaves are ordered by where their computation first meets the data on its way
    from the inputs to the outputs. Blocks are keys that differ in a number and follow each other in the data flow
    (``blocks_0``, ``layers/11``; at least three where each is a bare kernel and bias), or leaves that a `scan` takes
    row by row. Every run of blocks is a module, and so is every part of the tree without blocks. A leaf beside a run's
    blocks goes to its first layer where the blocks read it, else to its last. Modules stand in the order of the data
    flow; of branches, such as two towers, the one that is traced first comes first. A tied parameter stands where it
    is first used.

    A place that the data flow does not settle is a guess: of all leaves beside blocks, such as the whole upward half of
    a U-Net whose downward half has the blocks, and of parts that are one layer for want of blocks. `guesses` of the
    stack says which and why, and so does the table of `mx.describe`.

    What tracing cannot know: which leaves have pretrained values. Name the others in `free`.

    Args:
      apply_fn: the forward pass, ``apply_fn(params, *inputs)``; calls, loops, branches, remat and custom derivatives
        are looked into.
      params: parameters or `jax.ShapeDtypeStruct`s.
      inputs: arrays or `jax.ShapeDtypeStruct`s, as deep a pytree as `apply_fn` takes.
      free: patterns of leaves without pretrained values, as of `LayerStack`.

    Returns:
      A stack that covers `params`; print `mx.describe` of it. Its patterns name whole paths.

    Raises:
      ValueError: `free` is one string; a scan runs over its rows in reverse. When the stack is used: a `free` pattern
        matches nothing.

    Warns:
      UserWarning: nothing reads a leaf that stands beside no blocks; it is free in the proposal.

    Examples:
      >>> import jax, jax.numpy as jnp, maps_optax as mx
      >>> def apply(params, x):
      ...     for i in range(12):
      ...         x = x + jnp.tanh(x @ params["body"][f"block_{i}"]["w"])
      ...     return x @ params["head"]["w"]
      >>> w = {"w": jax.ShapeDtypeStruct((4, 4), jnp.float32)}
      >>> params = {"body": {f"block_{i}": w for i in range(12)}, "head": w}
      >>> stack = mx.infer_layers(apply, params, jnp.zeros((1, 4)), free=["^head/"])
      >>> stack.modules
      {'body': {'^body/block_(\\\\d+)(?=/|$)': 'block'}}
    """
    if isinstance(free, str):
        raise ValueError(f"infer_layers: free is {free!r}; give a list of patterns.")
    flat = _tree.flatten(params)
    paths = [tuple(part for key in path for part in key.split(".")) for path in flat.paths]
    met = _flow.meetings(apply_fn, params, inputs)
    patterns = [_compile(pattern) for pattern in free]
    kept = [i for i, path in enumerate(paths) if not any(p.search("/".join(path)) for p in patterns)]
    blocks = _blocks(paths, met, kept)
    owned, alone = _owners(paths, blocks, kept)
    unread = [i for leaves in alone.values() for i in leaves if met[i] is None]
    if unread:
        warnings.warn(
            f"infer_layers: nothing reads leaf {_tree._some([flat.paths[i] for i in unread])}; free in the proposal.",
            stacklevel=2,
        )

    members = {path: [i for i in leaves if met[i] is not None] for path, leaves in alone.items()}
    members = {path: leaves for path, leaves in members.items() if leaves}
    places: dict[int, tuple[str, _tree.Path]] = {i: ("given", ()) for i in set(range(len(paths))).difference(kept)}
    places.update((i, ("free", ())) for i in unread)
    places.update((i, ("first", path)) for path, leaves in members.items() for i in leaves)
    guesses = {
        flat.paths[i]: f"one layer with the rest of {'/'.join(path)!r}, which has no blocks"
        for path, leaves in members.items()
        if len(leaves) > 1
        for i in leaves
    }
    numbered: dict[_tree.Path, str] = {}
    for run in blocks:
        name = _name(run, blocks, paths)
        members[name] = [*run.leaves, *owned[run]]
        places.update((i, ("block" if run.stems else "stacked", name)) for i in run.leaves)
        for i in owned[run]:
            read = _flows([i], run.leaves, met)
            places[i] = ("first" if read else "last", name)
            where = f"in the {places[i][0]} layer of {'/'.join(name)!r}"
            guesses[flat.paths[i]] = f"{where}: beside its blocks, {'' if read else 'not '}read by them"
        if run.stems:
            numbered[name] = _number_pattern(run)

    tables = {name: {numbered[name]: "block"} if name in numbered else {} for name in _ordered(members, met)}
    unnamed = []
    for pattern, (place, name) in _patterns({paths[i]: place for i, place in places.items()}):
        if place == "free":
            unnamed.append(pattern)
        elif place not in ("block", "given"):
            tables[name][pattern] = place
    modules = {"/".join(name): table for name, table in tables.items()}
    return LayerStack(modules, (*free, *unnamed), guesses={_tree.name(path): why for path, why in guesses.items()})


def _blocks(paths: list[_tree.Path], met: list[Optional[_flow.Meeting]], kept: list[int]) -> list[_Blocks]:
    """Every run of blocks: those that a scan takes row by row, and numbered ones, outermost numbers first."""
    scans: dict[int, list[int]] = {}
    for i in kept:
        meeting = met[i]
        if meeting is not None and meeting.scan is not None:
            if meeting.reverse:
                raise ValueError(
                    f"infer_layers: a scan takes leaf {_tree.name(paths[i])!r} from its last row to its first, which "
                    "a LayerStack cannot say; give mx.maps the positions themselves."
                )
            scans.setdefault(meeting.scan, []).append(i)
    found = [_Blocks(_common([paths[i] for i in leaves]), (), frozenset(leaves)) for leaves in scans.values()]
    taken = {i for run in found for i in run.leaves}
    numbered: dict[tuple[_tree.Path, str], dict[int, list[int]]] = {}
    for i in kept:
        for depth, key in enumerate(paths[i]):
            match = _NUMBERED.fullmatch(key)
            if match:
                table = numbered.setdefault((paths[i][:depth], match.group(1)), {})
                table.setdefault(int(match.group(2)), []).append(i)
    for (prefix, stem), table in sorted(numbered.items(), key=lambda item: len(item[0][0])):
        table = {n: leaves for n, leaves in table.items() if not taken & set(leaves)}
        # Two layers without parts of their own, such as Dense_0 and Dense_1, are an MLP and no run of blocks.
        bare = all(len(paths[i]) == len(prefix) + 2 for leaves in table.values() for i in leaves)
        if len(table) > (2 if bare else 1) and _in_sequence([table[n] for n in sorted(table)], met):
            leaves = frozenset(i for block in table.values() for i in block)
            found.append(_Blocks(prefix, (stem,), leaves))
            taken |= leaves
    return _woven(found, met)


def _in_sequence(blocks: Sequence[Sequence[int]], met: list[Optional[_flow.Meeting]]) -> bool:
    """Whether each block follows the one before it in the data flow; blocks that nothing reads say nothing."""
    read = [block for block in blocks if any(met[i] is not None for i in block)]
    pairs = list(zip(read, read[1:]))
    return all(_flows(a, b, met) and not _flows(b, a, met) for a, b in pairs) and bool(pairs)


def _woven(found: list[_Blocks], met: list[Optional[_flow.Meeting]]) -> list[_Blocks]:
    """Runs side by side that alternate, such as convolutions and norms, are one."""
    woven: list[_Blocks] = []
    for run in found:
        for k, other in enumerate(woven):
            same = run.prefix == other.prefix and run.stems and other.stems
            if same and _flows(run.leaves, other.leaves, met) and _flows(other.leaves, run.leaves, met):
                woven[k] = _Blocks(run.prefix, other.stems + run.stems, other.leaves | run.leaves)
                break
        else:
            woven.append(run)
    return woven


def _flows(a: Iterable[int], b: Iterable[int], met: list[Optional[_flow.Meeting]]) -> bool:
    """Whether the data that some leaf of `b` meets holds a leaf of `a`."""
    mask = sum(1 << i for i in set(a))
    return any(meeting.before & mask for i in b if (meeting := met[i]) is not None)


def _owners(
    paths: list[_tree.Path], blocks: list[_Blocks], kept: list[int]
) -> tuple[dict[_Blocks, list[int]], dict[_tree.Path, list[int]]]:
    """The other leaves: by the run of blocks that is alone in their part of the tree, or by their part of the tree."""
    owned: dict[_Blocks, list[int]] = {run: [] for run in blocks}
    alone: dict[_tree.Path, list[int]] = {}
    taken = {i for run in blocks for i in run.leaves}
    for i in kept:
        if i in taken:
            continue
        path = paths[i]
        for depth in range(len(path), -1, -1):
            near = [run for run in blocks if run.prefix[:depth] == path[:depth]]
            if near or depth == 0:
                break
        if len(near) == 1:
            owned[near[0]].append(i)
        else:
            alone.setdefault(path[: depth + 1], []).append(i)
    return owned, alone


def _name(run: _Blocks, blocks: list[_Blocks], paths: list[_tree.Path]) -> _tree.Path:
    """The shortest path that holds this run of blocks alone; else what its blocks are called, or its first leaf."""
    for depth in range(1, len(run.prefix) + 1):
        if all(other is run or other.prefix[:depth] != run.prefix[:depth] for other in blocks):
            return run.prefix[:depth]
    return (*run.prefix, "".join(run.stems)) if run.stems else paths[min(run.leaves)]


def _ordered(groups: dict[_tree.Path, list[int]], met: list[Optional[_flow.Meeting]]) -> list[_tree.Path]:
    """Groups of leaves in the order of the data flow; what is traced first goes first where it leaves a choice."""
    first = {
        name: min((m.order for i in leaves if (m := met[i]) is not None), default=0) for name, leaves in groups.items()
    }
    waits = {
        b: {a for a in groups if a != b and _flows(groups[a], groups[b], met) and not _flows(groups[b], groups[a], met)}
        for b in groups
    }
    order: list[_tree.Path] = []
    while len(order) < len(groups):
        rest = [name for name in groups if name not in order]
        ready = [name for name in rest if waits[name] <= set(order)] or rest
        order.append(min(ready, key=lambda name: first[name]))
    return order


def _number_pattern(run: _Blocks) -> str:
    stems = "|".join(re.escape(stem) for stem in run.stems)
    prefix = "".join(re.escape(key) + "/" for key in run.prefix)
    return rf"^{prefix}{stems if len(run.stems) == 1 else f'(?:{stems})'}(\d+)(?=/|$)"


def _patterns(
    places: dict[_tree.Path, tuple[str, _tree.Path]], prefix: _tree.Path = ()
) -> Iterable[tuple[str, tuple[str, _tree.Path]]]:
    """The fewest subtrees that hold leaves of one place each, as patterns."""
    here = "^" + "/".join(map(re.escape, prefix))
    if prefix in places:
        yield here + "$", places[prefix]
    elif prefix and len(set(places.values())) == 1:
        yield here + "/", next(iter(places.values()))
    else:
        children: dict[str, dict[_tree.Path, tuple[str, _tree.Path]]] = {}
        for path, place in places.items():
            children.setdefault(path[len(prefix)], {})[path] = place
        for key, below in children.items():
            yield from _patterns(below, (*prefix, key))


def _common(paths: Sequence[_tree.Path]) -> _tree.Path:
    """The keys that all paths begin with, without the last key of any."""
    shared = min(len(path) for path in paths) - 1
    while any(path[:shared] != paths[0][:shared] for path in paths):
        shared -= 1
    return paths[0][:shared]
