"""Reads collectives and traffic out of a compiled program's text."""

import math
import re
from collections import Counter
from typing import NamedTuple

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# `x = shape all-reduce(...), channel_id=7, ...` or the first half of an asynchronous pair, `all-reduce-start(...)`.
OPERATION = re.compile(rf" ({'|'.join(KINDS)})(?:-start)?\(.*?channel_id=(\d+)")


def collectives(text: str) -> dict[str, int]:
    """Number of collectives by kind; one in the body of a loop over layers counts once.

    An operation that the compiler shows in several computations (asynchronous fusions) has one channel.
    """
    found = Counter(kind for kind, _ in {match.groups() for match in OPERATION.finditer(text)})
    return {kind: found[kind] for kind in KINDS if found[kind]}


# `%name = shape op(operands), ...`
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([a-z][\w-]*)\((.*?)\)(?:, |$)")
ARRAY = re.compile(r"([a-z]+\d+|pred)\[([\d,]*)\](\{[^}]*\})?")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8}
# What moves no bytes of its own: the second halves of asynchronous pairs and views among them.
FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "copy-done", "slice-done", "all-reduce-done")


class Traffic(NamedTuple):
    """Bytes that a step moves in the device's main memory, and in memory that the compiler manages on the chip."""

    main: int
    on_chip: int


def traffic(text: str) -> Traffic:
    """Bytes read and written by the instructions of a compiled program's entry, which has no loop.

    The compilers' own "bytes accessed" does not tell one memory from the other: a TPU program that fetches a leaf to
    the chip ahead of time counts it three times. Here a layout with `S(1)` is on the chip.
    """
    shapes: dict[str, str] = {}
    moved = [0, 0]
    for line in text[text.index("ENTRY") :].splitlines()[1:]:
        match = INSTRUCTION.match(line)
        if not match:
            continue
        name, shape, operation, operands = match.groups()
        shapes[name] = shape
        if operation in FREE:
            continue
        if operation in ("copy-start", "slice-start"):
            # (destination, source, context) and ((source), destination, context), of which a slice reads as it writes
            arrays = _arrays(shape)[:2]
            ends = arrays if operation == "copy-start" else [(arrays[1][0], False), (arrays[1][0], True)]
        else:
            ends = _arrays(shape) + [x for o in re.findall(r"%([\w.-]+)", operands) for x in _arrays(shapes.get(o, ""))]
        for size, on_chip in ends:
            moved[on_chip] += size
    return Traffic(*moved)


def _arrays(shape: str) -> list[tuple[int, bool]]:
    """(bytes, on the chip) of the arrays in a shape."""
    return [
        (BYTES.get(kind, 4) * math.prod(int(d) for d in dims.split(",") if d), "S(" in layout)
        for kind, dims, layout in ARRAY.findall(shape)
    ]


def cycles(text: str) -> int:
    """The TPU compiler's estimate of cycles, over the instructions of the entry; 0 of other compilers."""
    entry = text[text.index("ENTRY") :]
    return sum(int(n) for n in re.findall(r'"estimated_cycles":"(\d+)"', entry))


def kernels(text: str) -> int:
    """Instructions of the entry that are started one by one: fusions, copies, reductions and library calls."""
    entry = text[text.index("ENTRY") :]
    return len(re.findall(r"^\s+(?:ROOT )?%\S+ = .*? (?:fusion|copy|reduce|custom-call)\(", entry, re.MULTILINE))
