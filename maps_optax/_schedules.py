r"""How λ falls along the stack: :math:`\lambda_k / \lambda_{max}` of layer k of \|L\| = `size`, k = 1 first."""

import importlib
import math
from collections.abc import Callable
from typing import Union

Schedule = Union[str, Callable[[int, int], float]]


def _depth(k: int, size: int) -> float:
    """Where layer k lies, 0 for the first and 1 for the last; a stack of one layer is all first."""
    return (k - 1) / (size - 1) if size > 1 else 0.0


# linear is the paper's. cosine is its ablation, half a period. exponential and step are among its proposed
# checks; it fixes neither, so here exponential falls by the same factor per layer to a hundredth in the last,
# and step keeps the first half of the stack in full and frees the second.
SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "linear": lambda k, size: 1.0 - _depth(k, size),
    "cosine": lambda k, size: 0.5 * (1.0 + math.cos(math.pi * _depth(k, size))),
    "constant": lambda k, size: 1.0,
    "exponential": lambda k, size: 0.01 ** _depth(k, size),
    "step": lambda k, size: 1.0 if _depth(k, size) < 0.5 else 0.0,
}


def ratio(schedule: Schedule, k: int, size: int) -> float:
    """λ_k/λ_max of layer `k` in a stack of `size` layers.

    Raises:
      ValueError: an unknown name, or a custom schedule that gives a negative or non-finite ratio.
    """
    value = float((_named(schedule) if isinstance(schedule, str) else schedule)(k, size))
    if not (math.isfinite(value) and value >= 0.0):
        raise ValueError(
            f"schedule gives λ_k/λ_max = {value} for layer k={k} of {size}; it must be finite and not negative."
        )
    return value


def _named(schedule: str) -> Callable[[int, int], float]:
    """One of ours, or the function of a module, which is imported."""
    if schedule in SCHEDULES:
        return SCHEDULES[schedule]
    module, _, function = schedule.partition(":")
    if not (module and function):
        raise ValueError(
            f"unknown schedule {schedule!r}; use one of {', '.join(SCHEDULES)}, or a callable (k, size) -> ratio, "
            "itself or as 'module:function'."
        )
    try:
        found = getattr(importlib.import_module(module), function, None)
    except ImportError as error:
        raise ValueError(
            f"schedule {schedule!r}: importing {module} failed ({error}); install it, or put its folder on PYTHONPATH."
        ) from None
    if not callable(found):
        raise ValueError(f"schedule {schedule!r}: {module} has no function {function} (k, size) -> ratio.")
    return found
