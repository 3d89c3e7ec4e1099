"""Tensors of a published checkpoint to the leaves of a module, and back, by the tables of `names`.

One tensor is in memory at a time beside the leaves: a leaf that stacks blocks is filled block by block.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from octo_integration.weights.hf import Checkpoint, read
from octo_integration.weights.names import FORMATS, OUTSIDE, Format, Rule
from octo_integration.weights.positions import resample

ALIGNMENT = 64  # bytes, of XLA on the host
FLOATS = ("F64", "F32", "F16", "BF16")
COMPARED = 1 << 22  # elements at once
Leaves = dict[str, np.ndarray]
Shapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Plan:
    """How one module is read from one checkpoint; every tensor of its is accounted for.

    Attributes:
      module: its name in our tree.
      format: the family of names.
      prefix: before every name of the table.
      shapes: our leaves.
      rules: leaf -> its rule.
      ignored: tensors that no leaf needs -> why.
      copies: tensors that no leaf needs -> the tensor that they must repeat.
    """

    module: str
    format: Format
    prefix: str
    shapes: Shapes
    rules: Mapping[str, Rule]
    ignored: Mapping[str, str]
    copies: Mapping[str, str]


def plan(
    module: str,
    shapes: Shapes,
    checkpoint: Checkpoint,
    prefix: str | None = None,
    unread: Mapping[str, str] = {},
) -> Plan:
    """Finds every leaf of a module in a checkpoint, without reading a tensor.

    Args:
      module: key of FORMATS.
      shapes: path within the module -> shape of our leaf.
      prefix: of the module's tensors in a checkpoint that has others too; None: found, and no other may be there.
      unread: pattern of tensor names that this model needs not -> why, beside those that no model needs.

    Raises:
      ValueError: tensors are missing, left over, of another shape, or hold no floats; names them all.
    """
    layout, prefix_found = _recognise(module, shapes, checkpoint, prefix)
    rules = {rule.leaf: rule for rule in layout.rules if rule.leaf in shapes}
    wanted = {name: rule for rule in rules.values() for name in _sources(rule, prefix_found, shapes)}
    mine = {name for name in checkpoint.tensors if name.startswith(prefix_found)}
    others = set() if prefix is not None else set(checkpoint.tensors) - mine
    copies = {
        prefix_found + name: prefix_found + rules[leaf].source
        for name, leaf in layout.copies.items()
        if leaf in rules and prefix_found + name in mine - set(wanted)
    }
    ignored = {
        name: why
        for name in mine - set(wanted)
        if (why := _reason(name[len(prefix_found) :], {**layout.ignored, **unread}))
    }
    ignored |= {name: why for name in others if (why := _reason(name, OUTSIDE))}
    problems = {
        "missing": [*(leaf for leaf in shapes if leaf not in rules), *(n for n in wanted if n not in mine)],
        "unused": sorted((mine | others) - set(wanted) - set(ignored) - set(copies)),
        "of another shape": [
            f"{name} {list(checkpoint.tensors[name].shape)} (the model needs {list(shape)})"
            for name, rule in wanted.items()
            if name in mine and (shape := _misfit(rule, shapes[rule.leaf], checkpoint.tensors[name].shape)) is not None
        ],
        "no floats (quantised?)": [
            f"{name} {checkpoint.tensors[name].dtype}"
            for name in wanted
            if name in mine and checkpoint.tensors[name].dtype not in FLOATS
        ],
    }
    if any(problems.values()):
        told = "; ".join(f"{what}: {', '.join(names)}" for what, names in problems.items() if names)
        raise ValueError(f"{checkpoint.directory} does not fit {module} of the model ({layout.name} names): {told}.")
    return Plan(module, layout, prefix_found, shapes, rules, ignored, copies)


def as_published(plan: Plan, checkpoint: Checkpoint) -> Plan:
    """The same, with positions of as many patches as the checkpoint has, so that nothing is resampled."""
    rule = plan.rules.get("pos_embed")
    if rule is None:
        return plan
    rows = _patch_rows(checkpoint.tensors[plan.prefix + rule.source].shape)
    width = plan.shapes[rule.leaf][-1]
    return dataclasses.replace(plan, shapes={**plan.shapes, rule.leaf: (rows, width)})


def load(plan: Plan, checkpoint: Checkpoint) -> Leaves:
    """The leaves of a module, float32.

    Raises:
      ValueError: a file is damaged, has values that are not finite, or two different tensors where the model has one.
    """
    for copy, original in plan.copies.items():
        if not equal(copy, original, checkpoint):
            raise ValueError(
                f"{checkpoint.directory}: {copy} differs from {original}, but {plan.module} of the model has one leaf "
                "for both; give a checkpoint in which they are equal, or a model with a leaf for each."
            )
    return {leaf: _load(plan.rules[leaf], shape, plan, checkpoint) for leaf, shape in plan.shapes.items()}


def unload(
    module: str, layout: Format, leaves: Leaves, positions: int | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """The inverse of `load`: (name, tensor) of every tensor of a module, float32.

    The position of a class token is part of the token, so it is exported as zeros; reading it back gives the same
    leaves to the bit.

    Args:
      layout: of FORMATS[module].
      positions: rows that stand before the patches' positions in the checkpoint (1 where a class token has one).
    """
    fused: dict[str, dict[int, np.ndarray]] = {}
    for rule in layout.rules:
        if rule.leaf not in leaves:
            continue
        leaf = leaves[rule.leaf]
        for i, row in enumerate(leaf) if "{i}" in rule.source else ((0, leaf),):
            name, value = rule.source.format(i=i), _to_tensor(rule, row, positions or 0)
            if rule.how != "qkv":
                yield name, value
                continue
            parts = fused.setdefault(name, {})
            parts[rule.part] = value
            if len(parts) == 3:
                del fused[name]
                yield name, np.concatenate([parts[part] for part in range(3)])


def _recognise(module: str, shapes: Shapes, checkpoint: Checkpoint, prefix: str | None) -> tuple[Format, str]:
    """The first format of which the checkpoint has every kind of tensor that it has of any, and the names' prefix.

    Of two that fit as well, the one that has a name for more of the model's leaves: another would call what is missing
    by our name.
    """
    best: tuple[tuple[int, int], Format, str] | None = None
    for layout in FORMATS[module]:
        named = len({rule.leaf for rule in layout.rules} & shapes.keys())
        for found in {prefix} if prefix is not None else _prefixes(layout, checkpoint):
            hits = sum(found + rule.source.format(i=0) in checkpoint.tensors for rule in layout.rules)
            if hits and (best is None or (hits, named) > best[0]):
                best = (hits, named), layout, found
    if best is None:
        some = ", ".join(sorted(checkpoint.tensors)[:3])
        raise ValueError(
            f"{checkpoint.directory} has no {module}: its tensors ({some}, ...) are named as in none of "
            f"{', '.join(layout.name for layout in FORMATS[module])}; give the checkpoint of this module."
        )
    return best[1], best[2]


def _prefixes(layout: Format, checkpoint: Checkpoint) -> set[str]:
    sources = [rule.source.format(i=0) for rule in layout.rules if rule.how in ("conv", "matrix", "qkv")]
    return {
        name[: -len(source)]
        for name in checkpoint.tensors
        for source in sources
        if name.endswith(source) and (len(name) == len(source) or name[-len(source) - 1] == ".")
    }


def _sources(rule: Rule, prefix: str, shapes: Shapes) -> list[str]:
    depth = shapes[rule.leaf][0] if "{i}" in rule.source else 1
    return [prefix + rule.source.format(i=i) for i in range(depth)]


def _reason(name: str, ignored: Mapping[str, str]) -> str | None:
    return next((why for pattern, why in ignored.items() if re.fullmatch(pattern, name)), None)


def _row(rule: Rule, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of what one tensor makes: our leaf, or one block of it."""
    return shape[1:] if "{i}" in rule.source else shape


def _misfit(rule: Rule, shape: tuple[int, ...], found: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape that the tensor should have, where it has another one."""
    row = _row(rule, shape)
    if rule.how == "positions":  # of any square grid, with or without a class token
        patches, width = found[-2:] if len(found) > 1 else (0, 0)
        squares = {math.isqrt(patches - n) ** 2 + n for n in (0, 1)}
        return None if width == row[-1] and patches in squares else row
    wanted = SHAPES[rule.how](row, rule.leaf, found)
    return None if found == wanted else wanted


def _matrix_shape(row: tuple[int, ...], leaf: str, found: tuple[int, ...]) -> tuple[int, ...]:
    inputs = math.prod(row[:-1]) if leaf.endswith("out/kernel") else row[0]
    return (math.prod(row) // inputs, inputs)


def _qkv_shape(row: tuple[int, ...], leaf: str, found: tuple[int, ...]) -> tuple[int, ...]:
    one = _matrix_shape(row, leaf, found) if leaf.endswith("kernel") else (math.prod(row),)
    return (3 * one[0], *one[1:])


def _same_shape(row: tuple[int, ...], leaf: str, found: tuple[int, ...]) -> tuple[int, ...]:
    """Axes of length 1 before and heads apart, in any way: [1, 1, W] of [1, W], [W] of [H, W / H]."""
    return found if math.prod(found) == math.prod(row) and found[-1] in (row[-1], math.prod(row)) else row


SHAPES: dict[str, Callable[..., tuple[int, ...]]] = {
    "same": _same_shape,
    "token": _same_shape,
    "matrix": _matrix_shape,
    "conv": lambda row, leaf, found: (row[3], row[2], row[0], row[1]),
    "qkv": _qkv_shape,
}


def _load(rule: Rule, shape: tuple[int, ...], plan: Plan, checkpoint: Checkpoint) -> np.ndarray:
    leaf = _aligned(shape)
    names = _sources(rule, plan.prefix, plan.shapes)
    for row, name in zip(leaf if "{i}" in rule.source else (leaf,), names):
        row[...] = _to_row(rule, name, row.shape, plan, checkpoint)
    return leaf


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """An uninitialised float32 array that JAX takes on the host without copying it."""
    size = math.prod(shape) * 4
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(np.float32).reshape(shape)


def _to_row(rule: Rule, name: str, shape: tuple[int, ...], plan: Plan, checkpoint: Checkpoint) -> np.ndarray:
    third = checkpoint.tensors[name].shape[0] // 3 if rule.how == "qkv" else 0
    rows = slice(rule.part * third, (rule.part + 1) * third) if third else slice(None)
    value = read(checkpoint, name, rows)
    if rule.how == "conv":
        return value.transpose(2, 3, 1, 0)
    if rule.how == "matrix" or (rule.how == "qkv" and value.ndim == 2):
        return value.T.reshape(shape)
    if rule.how == "positions":
        return resample(
            value.reshape(-1, value.shape[-1])[-_patch_rows(value.shape) :], shape[0], plan.format.antialias
        )
    value = value.reshape(shape)
    return value + _class_position(plan, checkpoint) if rule.how == "token" else value


def _class_position(plan: Plan, checkpoint: Checkpoint) -> np.ndarray | float:
    """The class token's row of the positions, where they have one; for the token to keep."""
    rule = plan.rules["pos_embed"]
    name = plan.prefix + rule.source
    shape = checkpoint.tensors[name].shape
    if shape[-2] == _patch_rows(shape):
        return 0.0
    value = read(checkpoint, name)
    return value.reshape(-1, value.shape[-1])[:1]


def _patch_rows(shape: tuple[int, ...]) -> int:
    """How many of the rows of a position table are those of patches: a square number."""
    return math.isqrt(shape[-2]) ** 2


def equal(copy: str, original: str, checkpoint: Checkpoint) -> bool:
    """Whether two tensors are the same numbers, a few rows at a time."""
    shape = checkpoint.tensors[copy].shape
    if shape != checkpoint.tensors[original].shape:
        return False
    step = max(1, COMPARED * shape[0] // math.prod(shape))
    parts = [slice(at, min(at + step, shape[0])) for at in range(0, shape[0], step)]
    return all(np.array_equal(read(checkpoint, copy, rows), read(checkpoint, original, rows)) for rows in parts)


def _to_tensor(rule: Rule, row: Any, positions: int) -> np.ndarray:
    row = np.asarray(row, np.float32)
    if rule.how == "conv":
        return np.ascontiguousarray(row.transpose(3, 2, 0, 1))
    if rule.how == "matrix" or (rule.how == "qkv" and rule.leaf.endswith("kernel")):
        outputs, inputs = _matrix_shape(row.shape, rule.leaf, ())
        return np.ascontiguousarray(row.reshape(inputs, outputs).T)
    if rule.how == "positions":
        return np.concatenate([np.zeros((positions, row.shape[-1]), np.float32), row])
    if rule.how == "qkv" or rule.leaf.endswith("/bias"):
        return row.reshape(-1)
    return row
