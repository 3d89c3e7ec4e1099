"""From the sums over a layer to what a step does to it: c, r, the pull, and whether the last step was kept to."""

import functools
from typing import Any, NamedTuple, Optional

import jax
import jax.numpy as jnp
import numpy as np

from maps_optax import _strength, _sums

# The released code's floor of an L1 norm; it decides r where a displacement is tiny.
_MARS_FLOOR = 1e-8
# By how much of itself a drift summed in float32 may differ from the same drift summed otherwise.
_SUMMED = 1e-4


class Verdict(NamedTuple):
    """What a step is found to do, whatever λ."""

    home: jax.Array  # has the sign of ⟨g, d⟩ = −c, (n,)
    ratio: jax.Array  # r, (n, rows)


# Each of the functions below is one call where nothing around is jitted, and traced once for leaves of one shape.
_jit = functools.partial(jax.jit, inline=True)


def shares(b1: Any, count: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of the last and of this update's inner product in the estimate: b1 (1 − b1^{t−1}) and 1 − b1^t."""
    b1 = b1 if isinstance(b1, (int, float)) else _strength.bounded(b1, otherwise=0.9, below=1)
    power = jnp.asarray(b1, _sums.stat_dtype()) ** count.astype(_sums.stat_dtype())
    return b1 - power, 1 - power


@_jit
def judge(s: _sums.Sums, carry: jax.Array, shares: Optional[tuple[jax.Array, jax.Array]]) -> Verdict:
    """Where the gradient asks to go and how far the step goes out, for n layers at once.

    Args:
      shares: None where the sums know the gradient, so that nothing is estimated.
    """
    if shares is None:
        return Verdict(s.sign.sum(axis=1), ratio(s))
    # −(1 − b1^t)⟨u_t, d⟩ + b1 (1 − b1^{t−1})⟨u_{t−1}, d⟩, a negative multiple of the estimate of c
    return Verdict(shares[0] * carry - shares[1] * s.sign.sum(axis=1), ratio(s))


def ratio(s: _sums.Sums) -> jax.Array:
    """r, (n, rows)."""
    if s.l1 is None or s.l1_growth is None:
        # (γ_t − γ_{t−1})/γ_t = (γ_t² − γ_{t−1}²) / (γ_t (γ_t + γ_{t−1})), which does not cancel
        grows = (s.growth > 0) & jnp.isfinite(s.dd + s.growth)
        radius = jnp.sqrt(jnp.where(grows, s.dd + s.growth, 1))
        beyond = radius * (radius + _sums.root(jnp.where(grows, s.dd, 0)))
        grown = s.growth
    else:
        beyond = s.l1 + _MARS_FLOOR
        grown = s.l1_growth
        grows = (grown > 0) & jnp.isfinite(beyond)
    # No growth, 0/0 at d = u = 0, and what NaN and inf updates make of r, is no pull; and no NaN on the way there.
    return jnp.where(grows, jnp.minimum(jnp.where(grows, grown, 0) / jnp.where(grows, beyond, 1), 1), 0)


class Before(NamedTuple):
    """What a step finds."""

    drift: jax.Array  # ‖θ − θ0‖ as the step before predicted it, (n,)
    norm: jax.Array  # ‖θ0‖, or another bound of what rounding goes by, (n,)
    eps: np.ndarray  # as `rounding` gives it, (n,)


class Decision(NamedTuple):
    """What a step does."""

    pull: jax.Array  # λ·r where triggered, (n, rows)
    carry: jax.Array  # ⟨u, θ_t − θ0⟩ = (1 − λr)(⟨u, d⟩ + ‖u‖²), (n,)
    drift: jax.Array  # ‖θ_t − θ0‖, (n,)
    triggered: jax.Array  # (n,)
    mismatch: jax.Array  # (n,)


def _triggers(verdict: Verdict) -> jax.Array:
    """Whether c < 0, (n,); no where it is NaN or infinite."""
    return (verdict.home > 0) & (verdict.home < jnp.inf)


@_jit
def pull_of(verdict: Verdict, strength: jax.Array, max_pull: Any) -> jax.Array:
    """λ·r where triggered, (n, rows)."""
    pull = jnp.where(_triggers(verdict)[:, None], strength[:, None] * verdict.ratio, 0)
    return pull if max_pull is None else jnp.minimum(pull, jnp.where(max_pull >= 0, max_pull, 0))


def pull_of_sums(
    s: _sums.Sums, carry: jax.Array, strength: jax.Array, shares: Optional[tuple[jax.Array, jax.Array]], max_pull: Any
) -> jax.Array:
    """`Decision.pull`, (n, rows), and nothing else."""
    return pull_of(judge(s, carry, shares), strength, max_pull)


@functools.partial(_jit, static_argnames="exact")
def decide(
    s: _sums.Sums, verdict: Verdict, strength: jax.Array, before: Before, exact: bool, max_pull: Any
) -> Decision:
    """All of the step's scalars, for n layers at once."""
    pull = pull_of(verdict, strength, max_pull)
    # Squares that float32 does not hold are infinite, as is what is left of them.
    held = jnp.isfinite(s.dd) & jnp.isfinite(s.growth)
    squared = jnp.where(held, jnp.maximum(s.dd + s.growth, 0) * (1 - pull) ** 2, jnp.inf)
    return Decision(
        pull=pull,
        carry=jnp.zeros_like(verdict.home) if exact else ((1 - pull) * (s.growth - s.sign)).sum(axis=1),
        drift=_sums.root(squared.sum(axis=1)),
        triggered=_triggers(verdict).astype(_sums.stat_dtype()),
        mismatch=_mismatch(_sums.root(s.dd.sum(axis=1)), before),
    )


def _mismatch(found: jax.Array, before: Before) -> jax.Array:
    """By how much of itself the drift that is found is another than the one that the step before left, (n,).

    Adding the update rounds each parameter by eps/2 of itself at most, so the drift by eps/2 · (‖θ0‖ + drift).
    """
    left, norm, eps = before
    larger = jnp.maximum(found, left)
    beyond = jnp.abs(found - left) - (eps * (norm + 2 * larger) + _SUMMED * larger)
    differs = (left > 0) & (beyond > 0) & jnp.isfinite(larger)  # 0 may be the start, from wherever the anchor was given
    return jnp.where(differs, jnp.where(differs, beyond, 0) / jnp.where(differs, larger, 1), 0)


def rounding(a: _strength.Anchored, theta: Any, u: Any) -> np.ndarray:
    """The spacing of numbers at 1 in the coarser of a leaf's dtype and its update's, for each of its layers."""
    return np.full(a.layers or 1, max(float(jnp.finfo(x.dtype).eps) for x in (theta, u)), np.float32)


def project(layer: _sums.Layer, pull: jax.Array, dtype: Any) -> jax.Array:
    """u − λr(θ̃ − θ0); untouched, also where it is inf or NaN, if there is no pull."""
    return _project(layer.theta, layer.u, layer.theta0, layer.stacked, layer.rows, pull, dtype)


@functools.partial(_jit, static_argnums=(3, 4, 6))
def _project(theta: Any, u: Any, theta0: Any, stacked: bool, rows: bool, pull: jax.Array, dtype: Any) -> jax.Array:
    shape = [1] * theta.ndim
    if stacked:
        shape[0] = theta.shape[0]
    if rows:
        shape[int(stacked)] = theta.shape[int(stacked)]
    pull = (_sums.crossed(pull) if stacked else pull).reshape(shape).astype(u.dtype)
    # Not d + u: the d of the sums would be kept for it, a temporary as large as the parameters. It is rounded as θ is.
    displaced = theta + u if theta0 is None else (theta + u) - theta0
    return jnp.where(pull > 0, u - pull * displaced, u).astype(dtype)
