"""Who called: what a transformation can only know from Python's stack, while it runs or is traced."""

import sys
from types import FrameType
from typing import Optional

import optax

_LIBRARIES = ("maps_optax", "optax", "jax", "flax", "chex", "contextlib", "functools")
_CHAIN = "maps_optax._gradient"


def outside() -> int:
    """The `stacklevel` that makes `warnings.warn`, called beside this, point at the first line outside of libraries."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and _module(frame).partition(".")[0] in _LIBRARIES:
        level, frame = level + 1, frame.f_back
    return level


def is_member() -> bool:
    """Whether this one's caller, an `update`, was called by another transformation and not by a user's own line."""
    caller = sys._getframe(1).f_back
    return caller is not None and _module(caller).partition(".")[0] in _LIBRARIES


def gives_micro_batch() -> bool:
    """Whether the ``grad=`` that this one's caller received has passed `optax.MultiSteps`, and no `mx.chain` since.

    What `MultiSteps` hands on is what it was given, a micro-batch's gradient; the accumulated one, by which a step is
    judged, are the updates it makes of them.
    """
    frame: Optional[FrameType] = sys._getframe(2)
    while frame is not None and _module(frame) != _CHAIN:
        if frame.f_code is optax.MultiSteps.update.__code__:
            return True
        frame = frame.f_back
    return False


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))
