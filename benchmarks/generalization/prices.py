"""λ by what holding costs: parts of the model are set halfway back to θ0, and the training loss says what was lost.

A part (a module, or a layer) whose way home costs more than a share of the loss is let go, any other is held more:

    price_m = L(θ with part m at (θ + θ0) / 2) − L(θ)
    λ_m ← λ_m / FACTOR if price_m > share · L(θ), else λ_m · FACTOR

The windows are those that the next steps are trained on, all prices of one moment from the same ones.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.generalization.methods import Point
from benchmarks.generalization.strengths import positions

Tree = Any

FACTOR = 1.5
LEAST, MOST = 0.1, 8.0  # bounds of λ


class Moment(NamedTuple):
    """What was found at one step: the loss, and of every part its price and the λ that it has from then on."""

    step: int
    loss: float
    price: tuple[float, ...]
    strength: tuple[float, ...]


class Pricing(NamedTuple):
    """A rule for one model.

    Attributes:
      every: steps between two looks; share: of the loss, above which a part is let go.
      parts: tree like params of the part that a tensor, or every layer of a stacked one, is of, from 1; None: free.
      size: how many parts.
    """

    every: int
    share: float
    parts: Tree
    size: int


def pricing_of(point: Point, params: Tree) -> Pricing | None:
    """The rule of a point; None where λ stays. Params may be shapes."""
    if not point.price_share:
        return None
    parts = positions(point.price_of, params)
    return Pricing(point.price_every, point.price_share, parts, max(int(np.max(p)) for p in jax.tree.leaves(parts)))


def prices(loss: Callable[[Tree], jax.Array], params: Tree, theta0: Tree, parts: Tree, size: int) -> jax.Array:
    """f32[1 + size]: the loss, and what it rises by when each part is set halfway back."""

    def halfway(part: jax.Array) -> jax.Array:
        def of(place: Any, x: jax.Array, start: jax.Array) -> jax.Array:
            if place is None:
                return x
            mine = jnp.reshape(jnp.asarray(place) == part, np.shape(place) + (1,) * (x.ndim - np.ndim(place)))
            return jnp.where(mine, (x + start) / 2, x)

        return loss(jax.tree.map(of, parts, params, theta0, is_leaf=lambda x: x is None))

    found = jax.lax.map(halfway, jnp.arange(size + 1))  # there is no part 0: the loss as it is
    return jnp.concatenate([found[:1], found[1:] - found[0]])


def moved(strength: Tree, parts: Tree, found: np.ndarray, share: float) -> Tree:
    """The strengths from now on; `found` is of `prices`, a λ that was 0 stays so."""
    step = np.where(found[1:] > share * found[0], 1 / FACTOR, FACTOR)

    def of(place: Any, value: Any) -> Any:
        if place is None:
            return None
        new = np.clip(np.asarray(value) * step[np.asarray(place) - 1], LEAST, MOST)
        return np.where(np.asarray(value) == 0, 0, new).astype(np.float32)

    return jax.tree.map(of, parts, strength, is_leaf=lambda x: x is None)


def of_parts(strength: Tree, parts: Tree, size: int) -> tuple[float, ...]:
    """λ of every part, whose tensors have the same."""
    known = dict.fromkeys(range(1, size + 1), 0.0)
    for place, value in zip(*(jax.tree.leaves(tree) for tree in (parts, strength)), strict=True):
        known.update(zip(np.atleast_1d(place).tolist(), np.atleast_1d(value).tolist()))
    return tuple(round(value, 4) for value in known.values())


@functools.cache
def compiled(loss: Callable[..., jax.Array], size: int) -> Any:
    """(params, θ0, parts, *what else `loss` takes) -> `prices`."""

    def run(params: Tree, theta0: Tree, parts: Tree, *others: Any) -> jax.Array:
        return prices(lambda p: loss(p, *others), params, theta0, parts, size)

    return jax.jit(run)
