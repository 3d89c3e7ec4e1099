"""Seeded damage to bytes and JSON."""

import copy
import json
import random
import struct
from typing import Any

# What stands in for a value: of another type, out of range, or hard on a parser.
JUNK: tuple[Any, ...] = (
    None, True, 0, -1, 1, 2**40, 10**400, 1e308, -1e308, float("nan"), float("inf"), "", "x", "\x00",
    "../../etc/passwd", "os.path", [], {}, [[]], {"a": 1}, [1, "a", None], "9" * 30, -(2**63),
)  # fmt: skip
FLOATS = tuple(struct.pack("<f", x) for x in (float("nan"), float("inf"), 3e38, -3e38, 1e-45))


def of_bytes(data: bytes, rng: random.Random) -> bytes:
    """One to three changes: bits, numbers, pieces lost, doubled or put in, or the end lost."""
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.choice((1, 4, 8, 60)))
        kind = rng.randrange(7)
        if kind == 0 and at < len(data):
            data = data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        elif kind == 1:
            data = data[:at]
        elif kind == 2:
            data = data[:at] + data[end:]
        elif kind == 3:
            data = data[:end] + data[at:end] + data[end:]
        elif kind == 4:
            data = data[:at] + rng.randbytes(end - at) + data[at:]
        elif kind == 5:
            data = data[:at] + bytes(end - at) + data[end:]
        else:
            data = data[:at] + rng.choice(FLOATS) + data[at + 4 :]
    return data


def of_json(text: str, rng: random.Random) -> bytes:
    """The text with a value replaced, lost or renamed, or damaged as bytes."""
    if rng.random() < 0.25:
        return of_bytes(text.encode(), rng)
    value = json.loads(text)
    places = list(_places(value))
    for container, key in rng.sample(places, min(len(places), rng.randint(1, 2))):
        known = key in container if isinstance(container, dict) else key < len(container)
        kind = rng.randrange(4)
        if not known:  # lost by the change before
            continue
        if kind == 0:
            del container[key]
        elif kind == 1 and isinstance(container, dict):
            container[f"{key}s"] = container.pop(key)
        else:
            container[key] = copy.deepcopy(rng.choice(JUNK))
    return json.dumps(value).encode()


def _places(value: Any) -> Any:
    """(container, key) of every value in a JSON tree."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _places(inner)
