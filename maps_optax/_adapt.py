"""Rules that move λ of each layer while training, from numbers that the step already has."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Union

import jax
import jax.numpy as jnp
import numpy as np

# The least λ under `hypergradient`: at 0 the state would no longer tell a step that would have been pulled from one
# that would not.
_FLOOR = 1e-3


class AdaptStats(NamedTuple):
    """What a rule for λ may look at in step t, before it moves: vectors with one entry per layer, as in `SPDState`.

    All of it is computed anyway.

    Attributes:
      count: steps taken before this one, an int32 scalar.
      start: λ as `strength`, or `lambda_max` with its schedule, gives it.
      strength: λ of step t − 1; `start` in the first step.
      triggered: 1 where c < 0 in step t − 1, else 0.
      pull: λ·r of step t − 1, 0 where not triggered.
      home: the sign of ⟨g_t, θ_{t−1} − θ0⟩: 1 where the gradient asks to go home, −1 where it asks to move on, 0 at θ0
        and where it is NaN or infinite. Without the gradient it is the estimate's sign.
      ratio: r_t, the share of the radius that step t adds; 0 where it adds none.
      drift: ‖θ_{t−1} − θ0‖.
      norm: ‖θ0‖.
    """

    count: Any
    start: Any
    strength: Any
    triggered: Any
    pull: Any
    home: Any
    ratio: Any
    drift: Any
    norm: Any


Adapt = Callable[[AdaptStats], Any]


def hypergradient(rate: float, maximum: float = 4.0) -> Adapt:
    r"""A rule for `spd` and `maps`: λ follows the gradient that the loss of the next batch has with respect to it.

    Where step t − 1 was pulled, :math:`\theta_{t-1} = \tilde\theta - \lambda r \tilde d` with
    :math:`\tilde d = \tilde\theta - \theta_0`, and so, one step back and no further,

    .. math::

      \frac{\partial L_t(\theta_{t-1})}{\partial \lambda} = -r_{t-1} \langle g_t, \tilde d_{t-1} \rangle, \qquad
      \lambda \leftarrow \mathrm{clip}\big(\lambda + \eta\, \mathrm{sign}\,(r_{t-1} \langle g_t, \tilde d_{t-1}
      \rangle),\ 10^{-3},\ \lambda_{max}\big)

    Where the gradient after a pull still asks to go home, the pull was too weak and λ grows by η; where it asks to move
    on, λ shrinks by η; where nothing was pulled the derivative is 0 and λ stays. This is hypergradient descent (Baydin
    et al., Online Learning Rate Adaptation with Hypergradient Descent, arXiv 1703.04782) with three choices of ours:

    * The sign alone is taken. The derivative's size is r‖g‖‖d̃‖ times a cosine: each differs by orders of magnitude
      between layers and over a run, the cosine with a layer's width too, and none has to do with the unit of λ. The
      sign needs no further statistic, and is what the estimate without the gradient gives. λ rests where as many
      steps after a pull ask to go home as ask to move on.
    * ⟨g, d̃⟩ is ⟨g, d⟩ / (1 − λr), so the sign turns where the pull went past θ0. Under `max_pull` the derivative is 0
      while the cap holds; λ moves there all the same.
    * λ stays at 10⁻³ or above, which hardly pulls, but tells which steps would have been.

    The derivative looks one step ahead, at the training loss: it cannot see that a pull forgets less. It finds the λ
    that fresh batches do not object to, and with few data, seen often, that is a weak constraint.

    Args:
      rate: η, by how much λ moves in one step; λ needs 1/η steps after a pull to move by 1.
      maximum: upper bound of λ. Above 1 give `max_pull` too, unless r is known to be small.

    Returns:
      A rule `AdaptStats -> λ`, for ``adapt=``.

    Raises:
      ValueError: `rate` or `maximum` not positive and finite.

    Examples:
      >>> import jax, jax.numpy as jnp, maps_optax as mx, optax
      >>> tx = mx.chain(optax.sgd(0.1, momentum=0.9), mx.spd(1.0, adapt=mx.hypergradient(0.25)))
      >>> params = jnp.zeros(2)
      >>> state = tx.init(params)
      >>> for slope in (-1.0, 1.0, 1.0):  # the second step is pulled, and the third gradient asks for more
      ...     updates, state = tx.update(jnp.full(2, slope), state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> state[1].strength.tolist()
      [1.0]
    """
    _check_positive("mx.hypergradient", rate=rate, maximum=maximum)

    def rule(now: AdaptStats) -> jax.Array:
        toward = jnp.where(now.pull > 0, now.home * jnp.sign(1 - now.pull), 0)
        return jnp.clip(now.strength + rate * toward, min(_FLOOR, maximum), maximum)

    return rule


def drift_budget(budget: Union[float, Any, Callable[[AdaptStats], Any]], rate: float, maximum: float = 4.0) -> Adapt:
    r"""A rule for `spd` and `maps`: λ is what it takes to hold each layer's relative drift to a budget.

    .. math::

      \lambda \leftarrow \mathrm{clip}\Big(\lambda + \eta \min\Big(\frac{\|\theta - \theta_0\|}{b\, \|\theta_0\|} - 1,\
      1\Big),\ 0,\ \lambda_{max}\Big)

    which is dual ascent on the multiplier of :math:`\|\theta - \theta_0\| \le b\,\|\theta_0\|`, the constraint being
    enforced by SPD rather than by a penalty (as in Stooke, Achiam and Abbeel, Responsive Safety in Reinforcement
    Learning by PID Lagrangian Methods, arXiv 2007.03964, the integral term alone). λ falls to 0, plain fine-tuning,
    where a layer stays within its budget, grows again where it does not, and the schedule along the stack is then one
    that the task has made. The excess counts as 1 at most, so that λ moves by η at most.

    It is a budget, not a projection: SPD acts on triggered steps only, so a layer whose gradients never ask to go home
    exceeds it at any λ, and λ overshoots where η is large against the time that drift takes to answer.

    A tensor with θ0 = 0 (a bias that started at zero) has no relative drift: its λ stays what it was at the start.

    Args:
      budget: b > 0, a number; a vector with one entry per layer, in the order of `SPDState.drift`; or a callable
        `AdaptStats -> such a vector`: ``lambda now: 0.02 * now.start.max() / now.start`` lets it rise along the stack
        as the schedule falls.
      rate: η, by how much λ moves in a step in which drift is twice its budget or more.
      maximum: upper bound of λ. Above 1 give `max_pull` too, unless r is known to be small.

    Returns:
      A rule `AdaptStats -> λ`, for ``adapt=``.

    Raises:
      ValueError: an argument not positive and finite; at `update`, a budget of the wrong length.

    Examples:
      >>> import jax.numpy as jnp, maps_optax as mx, optax
      >>> tx = mx.chain(optax.sgd(0.1), mx.spd(1.0, adapt=mx.drift_budget(0.05, rate=0.5)))
      >>> params = jnp.asarray([0.0, 1.0])
      >>> state = tx.init(params)
      >>> for _ in range(4):  # 0, 0.1, 0.2 and 0.3 from the start before the step
      ...     updates, state = tx.update(jnp.asarray([-1.0, 0.0]), state, params)
      ...     params = optax.apply_updates(params, updates)
      ...     print(round(float(state[1].strength[0]), 3))
      0.5
      1.0
      1.5
      2.0
    """
    who = "mx.drift_budget"
    _check_positive(who, rate=rate, maximum=maximum)
    if not callable(budget):
        known = np.asarray(budget, np.float64)
        if known.ndim > 1 or not (np.isfinite(known).all() and (known > 0).all()):
            raise ValueError(f"{who}: budget is {budget}; give a positive number, or a vector of them, one per layer.")

    def rule(now: AdaptStats) -> jax.Array:
        share = jnp.asarray(budget(now) if callable(budget) else budget, now.drift.dtype)
        if share.ndim and share.shape != now.drift.shape:
            raise ValueError(
                f"{who}: budget has shape {share.shape}, but there are {now.drift.shape[0]} layers; give one number, "
                "or one per layer in the order of SPDState.drift."
            )
        scale = share * now.norm
        excess = jnp.minimum(now.drift / jnp.where(scale > 0, scale, 1) - 1, 1)
        return jnp.where(scale > 0, jnp.clip(now.strength + rate * excess, 0, maximum), now.strength)

    return rule


def _check_positive(who: str, **values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{who}: {name} is {value}; it must be positive and finite.")
