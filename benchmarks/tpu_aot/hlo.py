"""Reads collectives out of a compiled program's text."""

import re
from collections import Counter

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# `x = shape all-reduce(...), channel_id=7, ...` or the first half of an asynchronous pair, `all-reduce-start(...)`.
OPERATION = re.compile(rf" ({'|'.join(KINDS)})(?:-start)?\(.*?channel_id=(\d+)")


def collectives(text: str) -> dict[str, int]:
    """Number of collectives by kind; one in the body of a loop over layers counts once.

    An operation that the compiler shows in several computations (asynchronous fusions) has one channel.
    """
    found = Counter(kind for kind, _ in {match.groups() for match in OPERATION.finditer(text)})
    return {kind: found[kind] for kind in KINDS if found[kind]}
