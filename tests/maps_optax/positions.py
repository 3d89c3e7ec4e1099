"""Where a stack puts the leaves of a tree."""

from typing import Any

import maps_optax as mx


def positions(stack: Any, params: Any) -> dict[str, Any]:
    """Path → k, or the list of k of a stacked leaf."""
    found: dict[str, Any] = {}
    for s in mx.slices(stack, params):
        if s.row is None:
            found[s.path] = s.position
        else:
            found.setdefault(s.path, []).append(s.position)
    return found
