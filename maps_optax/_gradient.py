"""Hand the raw gradient on to the members of a chain."""

from typing import Any

import optax


def chain(*transforms: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """`optax.chain`, with the same state tree, that also hands the gradient it receives to its members as ``grad=``.

    A member that follows Adam receives Adam's update, from which the sign that MAPS needs cannot be read; code that
    calls `tx.update(grads, opt_state, params)`, as Octo, openpi and flax's `TrainState` do, cannot pass it either.

    A nested `mx.chain` hands on what it receives itself, so inside `optax.MultiSteps` it is the accumulated gradient,
    also where somebody passes the micro-batch's as ``grad=`` from outside.

    Args:
      *transforms: as for `optax.chain`; members that take no extra arguments are left alone.

    Returns:
      A `GradientTransformationExtraArgs` whose state is the tuple of its members' states.

    Examples:
      >>> import jax.numpy as jnp, maps_optax as mx, optax
      >>> tx = mx.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3), mx.spd(0.5, criterion="gradient"))
      >>> params = jnp.ones(3)
      >>> updates, state = tx.update(jnp.ones(3), tx.init(params), params)
      >>> updates.shape
      (3,)
    """
    inner = optax.with_extra_args_support(optax.chain(*transforms))

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        return inner.update(updates, state, params, **{**extra_args, "grad": updates})

    return optax.GradientTransformationExtraArgs(inner.init, update)
