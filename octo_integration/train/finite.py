"""Losses and gradients that are NaN or infinite: found on the device, told at the next log step.

Nothing waits for the device on their account: a step returns whether it was skipped and which gradient was the first
that is not finite among its metrics, which the loop fetches when it logs or saves.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Tree = Any

# Metrics of a step that are for us, not for the log.
BAD_LEAF, SKIPPED = "bad_leaf", "skipped"


class Problem(NamedTuple):
    """Why a run stops.

    Attributes:
      batch: its place in the metrics that were checked.
      value: of which metric it is the first: "loss is nan".
      detail: what else is known; one or more clauses that end in "; ", or "".
    """

    batch: int
    value: str
    detail: str


def bad_leaf(grads: Tree) -> jax.Array:
    """int32[]: the number of the first leaf that holds a NaN or inf, or whose square overflows; -1 if there is none.

    It asks for the very sums that the global norm is made of, so it costs next to nothing.
    """
    bad = ~jnp.isfinite(jnp.stack([jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(grads)]))
    return jnp.where(bad.any(), jnp.argmax(bad), -1).astype(jnp.int32)


def keep_unless(good: jax.Array, new: Tree, old: Tree) -> Tree:
    """`new` where `good`, else `old` to the bit.

    Element by element, so that XLA makes it part of the update, whose buffers it shares. What no update changes
    (theta0, which may be in the host's memory) is passed on as it is.
    """
    return jax.tree.map(lambda a, b: b if a is b else jnp.where(good, a, b), new, old)


def check(
    metrics: Sequence[Mapping[str, Any]], before: int, patience: int, leaves: Sequence[str]
) -> tuple[int, Problem | None]:
    """Looks through what the steps since the last check returned, on the host.

    Args:
      metrics: of each batch, in order.
      before: batches skipped in a row just before them.
      patience: batches skipped in a row that are too many.
      leaves: paths of the trained parameters.

    Returns:
      (batches skipped in a row at the end, the first problem or None).
    """
    row = before
    for i, values in enumerate(metrics):
        row = row + 1 if values.get(SKIPPED) else 0
        named = {name: float(values[name]) for name in ("loss", *values)}
        value = next((f"{name} is {x}" for name, x in named.items() if not math.isfinite(x)), None)
        if value is None or 0 < row < patience:
            continue
        number = int(values.get(BAD_LEAF, -1))
        skipped = f"so it was in {row} batches in a row, which were skipped; " if row else ""
        where = f"the first gradient that is not finite is that of {leaves[number]}; " if number >= 0 else ""
        return row, Problem(i, value, skipped + where)
    return row, None


def mean(metrics: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The mean of every metric over the batches that were not skipped; empty if all were."""
    used = [values for values in metrics if not values.get(SKIPPED)]
    names = [name for name in (used[0] if used else {}) if name not in (BAD_LEAF, SKIPPED)]
    return {name: float(np.mean([values[name] for values in used])) for name in names}
