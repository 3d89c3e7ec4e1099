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
    """Bytes of a step by memory: the device's main one, and one that the compiler manages on the chip."""

    main: int  # read and written in main memory
    on_chip: int  # read and written on the chip
    temporaries: int  # of all arrays that are written to main memory and are no output; more than live at once


def traffic(text: str) -> Traffic:
    """What the instructions of a compiled program's entry, which has no loop, read and write.

    The compilers' own "bytes accessed" does not tell one memory from the other: a TPU program that fetches a leaf to
    the chip ahead of time counts it three times. Here a layout with `S(1)` is on the chip.
    """
    shapes: dict[str, str] = {}
    parameters = set()
    moved = [0, 0]
    temporaries = 0
    for line in text[text.index("ENTRY") :].splitlines()[1:]:
        match = INSTRUCTION.match(line)
        if not match:
            continue
        name, shape, operation, listed = match.groups()
        operands = re.findall(r"%([\w.-]+)", listed)
        shapes[name] = shape
        if operation == "parameter":
            parameters.add(name)
        if line.lstrip().startswith("ROOT"):
            outputs = [shapes[o] for o in operands if o not in parameters] if operation == "tuple" else []
            temporaries -= sum(size for o in outputs for size, on_chip in _arrays(o) if not on_chip)
        if operation in FREE:
            continue
        written = _arrays(shape)
        if operation in ("copy-start", "slice-start"):
            # (destination, source, context) and ((source), destination, context), of which a slice reads as it writes
            written = written[:1] if operation == "copy-start" else written[1:2]
            read = _arrays(shape)[1:2] if operation == "copy-start" else [(written[0][0], False)]
        else:
            read = [x for o in operands for x in _arrays(shapes.get(o, ""))]
        temporaries += sum(size for size, on_chip in written if not on_chip)
        for size, on_chip in written + read:
            moved[on_chip] += size
    return Traffic(*moved, temporaries)


def _arrays(shape: str) -> list[tuple[int, bool]]:
    """(bytes, on the chip) of the arrays in a shape."""
    return [
        (BYTES.get(kind, 4) * math.prod(int(d) for d in dims.split(",") if d), "S(" in layout)
        for kind, dims, layout in ARRAY.findall(shape)
    ]


def all_reduced(text: str) -> int:
    """Bytes that the all-reduces of a program add up on each device; one in a loop counts once."""
    found = (INSTRUCTION.match(line) for line in text.splitlines())
    reduces = [match for match in found if match and match.group(3) in ("all-reduce", "all-reduce-start")]
    return sum(size for match in reduces for size, _ in _arrays(match.group(2)))


def cycles(text: str) -> int:
    """The TPU compiler's estimate of cycles, over the instructions of the entry; 0 of other compilers."""
    entry = text[text.index("ENTRY") :]
    return sum(int(n) for n in re.findall(r'"estimated_cycles":"(\d+)"', entry))


def kernels(text: str) -> int:
    """Instructions of the entry that are started one by one: fusions, copies, reductions and library calls."""
    entry = text[text.index("ENTRY") :]
    return len(re.findall(r"^\s+(?:ROOT )?%\S+ = .*? (?:fusion|copy|reduce|custom-call)\(", entry, re.MULTILINE))
