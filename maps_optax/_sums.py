"""What a step is judged by: inner products over each layer, read in one pass.

One sum per layer: a tensor, or a slice along axis 0 of a leaf that stacks layers (or a row of it, for "mars").
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Optional

import jax
import jax.numpy as jnp
import numpy as np

from maps_optax import _devices, _strength

# Elements that a CPU may add one after the other in float32.
_LONGEST_ROW = 2**13
# Elements that a CPU adds up in the time that another kernel would take to start.
_SMALL = 2**11
# Numbers that may be summed against an identity as they are; a TPU has a kernel more to cut them into parts.
_FEW = 2**16


class Sums(NamedTuple):
    """Inner products over each layer, or each row of it, with d = θ − θ0 before the step: arrays (n, rows)."""

    dd: jax.Array  # ‖d‖²
    growth: jax.Array  # ⟨u, 2d + u⟩ = ‖d + u‖² − ‖d‖², without its cancellation
    sign: jax.Array  # ⟨g, d⟩ where the gradient is known, else ⟨u, d⟩
    l1: Optional[jax.Array] = None  # Σ|d + u|, for "mars"
    l1_growth: Optional[jax.Array] = None  # Σ(|d + u| − |d|), for "mars"
    anchor: Optional[jax.Array] = None  # ‖θ0‖², where only the step can add it up


class Layer(NamedTuple):
    """One anchored leaf, widened: parameter before the step, update, gradient, θ0, and which axes are kept apart."""

    theta: jax.Array
    u: jax.Array
    g: Optional[jax.Array]
    theta0: Optional[jax.Array]  # None: 0
    stacked: bool
    rows: bool = False


def widen(a: _strength.Anchored, theta: Any, theta0: Any, u: Any, g: Any, norm: str) -> Layer:
    """A leaf as float32, or as float64 if any of it is."""
    dtype = jnp.promote_types(jnp.promote_types(theta.dtype, u.dtype), jnp.float32)
    stacked = a.layers is not None
    rows = norm == "mars" and theta.ndim - stacked >= 2
    theta, u, theta0 = (x.astype(dtype) for x in (theta, u, theta0))
    return Layer(theta, u, None if g is None else g.astype(dtype), theta0, stacked, rows)


def sums_of(layer: Layer, norm: str, with_anchor: bool) -> Sums:
    """The sums of a leaf; those for "mars" and ‖θ0‖² where asked for."""
    return _sums_of(*layer, norm, with_anchor)


@functools.partial(jax.jit, static_argnums=(4, 5, 6, 7), inline=True)
def _sums_of(theta: Any, u: Any, g: Any, theta0: Any, stacked: bool, rows: bool, norm: str, with_anchor: bool) -> Sums:
    d = theta - theta0
    terms = {"dd": d * d, "growth": u * (d + d + u), "sign": (u if g is None else g) * d}
    if norm == "mars":
        terms |= {"l1": jnp.abs(d + u), "l1_growth": jnp.abs(d + u) - jnp.abs(d)}
    if with_anchor:
        terms["anchor"] = theta0 * theta0
    shape = (d.shape[0] if stacked else 1, d.shape[int(stacked)] if rows else 1)
    totals = _totals(tuple(terms.values()), tuple(range(stacked + rows, d.ndim)))
    return Sums(
        **{name: (crossed(x) if stacked else x).reshape(shape).astype(stat_dtype()) for name, x in zip(terms, totals)}
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _totals(terms: tuple[jax.Array, ...], axes: tuple[int, ...]) -> tuple[jax.Array, ...]:
    """Each of the terms, which have one shape, summed over `axes`."""
    return _reduced(terms, axes) if axes else terms


@_totals.defjvp
def _(axes: tuple[int, ...], terms: Any, tangents: Any) -> Any:
    """JAX cannot differentiate a reduction of several operands where one of them does not vary."""
    return _totals(terms[0], axes), tuple(jnp.sum(x, axis=axes) for x in tangents[0])


@functools.partial(jax.jit, static_argnames="axes")  # so that a shape is traced once
def _reduced(terms: tuple[jax.Array, ...], axes: tuple[int, ...]) -> tuple[jax.Array, ...]:
    return tuple(_devices.by_devices(functools.partial(_reduced_on, axes), *terms))


def _reduced_on(axes: tuple[int, ...], target: _devices.Target, *terms: jax.Array) -> tuple[jax.Array, ...]:
    """The sums of the terms, in the way that is best for so many devices.

    One reduction of all the terms reads their operands once; XLA's CPU compiler reads them once per sum otherwise, and
    its GPU compiler starts a kernel more per sum. GSPMD, however, would gather the partial sums of every leaf for it
    instead of adding to the one all-reduce, so it is for arrays that lie on one device.
    """

    def each(*terms: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(jnp.sum(x, axis=axes) for x in terms)

    def added(axes: tuple[int, ...], *terms: jax.Array) -> tuple[jax.Array, ...]:
        zeros = (np.zeros((), terms[0].dtype),) * len(terms)
        return tuple(jax.lax.reduce(terms, zeros, lambda a, b: tuple(x + y for x, y in zip(a, b)), axes))

    def together(*terms: jax.Array) -> tuple[jax.Array, ...]:
        rows = added(axes[-1:], *terms)
        return _reduced_on(axes[:-1], target, *rows) if axes[:-1] else rows

    def in_halves(*terms: jax.Array) -> tuple[jax.Array, ...]:
        """A core adds the terms of two rows in the time of one: additions to one sum wait for each other."""
        if math.prod(terms[0].shape[axis] for axis in axes) <= _SMALL:
            return added(axes, *terms)
        if len(axes) < 2 or terms[0].shape[axes[0]] % 2:
            return together(*terms)
        halves = added(axes[-1:], *[half for x in terms for half in jnp.split(x, 2, axis=axes[0])])
        rows = [a + b for a, b in zip(halves[::2], halves[1::2])]
        return _reduced_on(axes[:-1], target, *rows)

    long = terms[0].shape[axes[-1]] > _LONGEST_ROW
    if long or target.devices > 1 or not hasattr(jax.lax, "platform_dependent"):
        return each(*terms)
    return jax.lax.platform_dependent(*terms, cpu=in_halves, cuda=together, rocm=together, default=each)


@jax.custom_jvp
def crossed(x: jax.Array) -> jax.Array:
    """`x`, summed against the identity over axis 0, the axis of stacked layers.

    Nothing but a copy to the eye. Where GSPMD splits the leaf's axis 0, it keeps that sharding from the packed
    statistics: on the way in, the sum becomes part of the all-reduce that they share, and on the way out a local
    slice, instead of an all-gather and a permutation per leaf.
    """
    return _crossed(x)


crossed.defjvp(lambda x, tangents: (crossed(*x), *tangents))


@jax.jit
def _crossed(x: jax.Array) -> jax.Array:
    return _devices.by_devices(_crossed_on, x)[0]


def _crossed_on(target: _devices.Target, x: jax.Array) -> tuple[jax.Array]:
    n = x.shape[0]
    few = n * x.size <= _FEW and target.devices > 1
    parts = n if few else math.gcd(n, target.devices)  # JAX splits an axis evenly
    if parts <= 1:
        return (x,)
    apart = x if few else x.reshape(parts, n // parts, *x.shape[1:])
    eye = jnp.eye(parts, dtype=bool).reshape((parts, parts) + (1,) * (apart.ndim - 1))
    return (jnp.sum(jnp.where(eye, apart[:, None], 0), axis=0).reshape(x.shape),)


def psum(sums: list[Sums], axis_name: Any) -> list[Sums]:
    """The sums of all layers in one all-reduce."""
    leaves, treedef = jax.tree_util.tree_flatten(sums)
    if not leaves:
        return sums
    flat = jax.lax.psum(jnp.concatenate([x.reshape(-1) for x in leaves]), axis_name)
    parts = jnp.split(flat, np.cumsum([math.prod(x.shape) for x in leaves])[:-1])
    return jax.tree_util.tree_unflatten(treedef, [p.reshape(x.shape) for p, x in zip(parts, leaves)])


def join(parts: Sequence[Any]) -> jax.Array:
    """The layers of all leaves in one vector; a 0 where there is none, because Orbax saves no empty array."""
    if not parts:
        return jnp.zeros((1,), stat_dtype())
    known = all(isinstance(part, np.ndarray) for part in parts)  # one array for the device in place of many
    return jnp.asarray(np.concatenate(parts)) if known else jnp.concatenate(parts)


def concatenate(tuples: list[Any]) -> Any:
    """One NamedTuple for the layers of all leaves."""
    return jax.tree_util.tree_map(lambda *parts: jnp.concatenate(parts), *tuples)


def root(x: jax.Array) -> jax.Array:
    """√x for x ≥ 0, whose derivative at 0 is 0 and not infinite."""
    return jnp.where(x == 0, 0, jnp.sqrt(jnp.where(x == 0, 1, x)))


def stat_dtype() -> Any:
    """float32, or float64 where JAX is told to use it."""
    return jnp.asarray(0.0).dtype
