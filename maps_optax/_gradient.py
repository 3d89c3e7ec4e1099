"""Hand the raw gradient on to the members of a chain."""

import inspect
from typing import Any

import optax

from maps_optax import _callers


def chain(*transforms: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """`optax.chain`, with the same state tree, that also hands the gradient it receives to its members as ``grad=``.

    A member that follows Adam receives Adam's update, from which the sign that MAPS needs cannot be read; code that
    calls `tx.update(grads, opt_state, params)`, as Octo, openpi and flax's `TrainState` do, cannot pass it either.

    The updates that it receives are the gradient, unless it is handed one: ``grad=`` goes on to its members, so a
    chain within a chain may stand anywhere. `optax.MultiSteps` alone hands on what is not meant, the micro-batch's
    gradient; in a chain right inside it the gradient is the accumulated one, whatever ``grad=`` says.

    Args:
      *transforms: as for `optax.chain`; members whose `update` takes no ``grad`` are called without it.

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
    inner = optax.with_extra_args_support(optax.chain(*(t if _takes_gradient(t) else _deaf(t) for t in transforms)))

    def update(updates: Any, state: Any, params: Any = None, *, grad: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        if grad is None or _callers.gives_micro_batch():
            grad = updates
        return inner.update(updates, state, params, grad=grad, **extra_args)

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _takes_gradient(transform: optax.GradientTransformation) -> bool:
    """Whether `optax.chain` may call it with ``grad=``; a plain transformation is called without extra arguments."""
    if not isinstance(transform, optax.GradientTransformationExtraArgs):
        return True
    parameters = inspect.signature(transform.update).parameters.values()
    return any(p.name == "grad" or p.kind is p.VAR_KEYWORD for p in parameters)


def _deaf(transform: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """`transform`, never told of ``grad``."""

    def update(updates: Any, state: Any, params: Any = None, *, grad: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        del grad
        return transform.update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(transform.init, update)
