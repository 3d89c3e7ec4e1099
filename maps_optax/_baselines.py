"""The baselines of robust fine-tuning that MAPS is compared with."""

from typing import Any, Union

import jax.numpy as jnp
import numpy as np
import optax

from maps_optax import _anchor, _inject, _strength, _tree


@_inject.takes_functions(of_params="strength")
def l2_sp(
    strength: _strength.Strength, *, anchor: Any = None, anchor_dtype: Any = None
) -> optax.GradientTransformationExtraArgs:
    r"""L2-SP: the gradient of a quadratic penalty on the distance from θ0, placed before the optimizer.

    .. math:: g \leftarrow g + \lambda (\theta - \theta_0), \qquad
       \text{the gradient of } \tfrac{\lambda}{2} \|\theta - \theta_0\|^2

    (Li, Grandvalet and Davoine, Explicit Inductive Bias for Transfer Learning with Convolutional Networks, ICML 2018.)

    Args:
      strength: λ ≥ 0, in every form that `spd` takes, so `mx.strengths(...)` schedules it along the stack.
      anchor: θ0, a pytree like params; by default a copy of the params that `init` sees.
      anchor_dtype: dtype to keep θ0 in, by default its parameter's.

    Returns:
      A transformation with state `L2SPState`.

    Raises:
      ValueError: as `spd` does.

    Examples:
      >>> import jax.numpy as jnp, maps_optax as mx
      >>> tx = mx.l2_sp(0.5)
      >>> state = tx.init(jnp.zeros(2))
      >>> tx.update(jnp.ones(2), state, jnp.array([2.0, -2.0]))[0].tolist()
      [2.0, 0.0]
    """
    who = "mx.l2_sp"
    strength = _inject.unwrap(strength)

    def init(params: Any) -> _anchor.L2SPState:
        flat = _tree.flatten(params)
        keep = [a.leaf for a in _strength.plan(strength, flat, params, who)]
        return _anchor.L2SPState(_anchor.init(flat, keep, anchor, anchor_dtype, None, who))

    def update(
        updates: Any, state: _anchor.L2SPState, params: Any = None, **extra_args: Any
    ) -> tuple[Any, _anchor.L2SPState]:
        del extra_args
        if params is None:
            raise ValueError(f"{who} needs the current parameters; call tx.update(grads, opt_state, params).")
        if isinstance(state.anchor, _anchor.DetachedAnchor):
            raise ValueError(f"{who}: the anchor is detached; call mx.attach_anchor(opt_state, pretrained) first.")
        flat = _tree.flatten(params)
        grads = _tree.align(updates, flat, f"{who}: updates")
        anchors = _tree.align(state.anchor, flat, f"{who}: the state's anchor")
        for a in _strength.plan(strength, flat, params, who):
            g, theta, theta0 = grads[a.leaf], flat.leaves[a.leaf], anchors[a.leaf]
            _tree.check_shape(g, theta, flat.paths[a.leaf], f"{who}: updates", _tree.AS_GRADIENTS)
            if _tree.is_masked(theta0):
                path = _tree.name(flat.paths[a.leaf])
                raise ValueError(f"{who}: leaf {path!r} was free at init and is not now; call init again.")
            _tree.check_shape(theta0, theta, flat.paths[a.leaf], f"{who}: the state's anchor", "call init again")
            dtype = jnp.promote_types(jnp.promote_types(theta.dtype, g.dtype), jnp.float32)
            lam = _broadcast(_strength.now(a).astype(dtype)[... if a.layers else 0], theta.ndim)
            grads[a.leaf] = (g.astype(dtype) + lam * (theta.astype(dtype) - theta0.astype(dtype))).astype(g.dtype)
        return _tree.unflatten(flat, grads), state

    return optax.GradientTransformationExtraArgs(init, update)


def interpolate(pretrained: Any, params: Any, alpha: Union[float, Any]) -> Any:
    r"""Interpolation in weight space between θ0 and the fine-tuned θ: WiSE-FT, and per-module merges.

    .. math:: \theta_\alpha = (1 - \alpha)\,\theta_0 + \alpha\,\theta

    (Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022.) The ends are exact, to the bit. What has no
    values in between (integers, bools, PRNG keys) is taken from the nearer end, from θ where α = ½.

    Args:
      pretrained: θ0, a tree that has every leaf of params.
      params: θ, the fine-tuned parameters.
      alpha: a number, or a pytree like params of numbers and of 1-D arrays for leaves whose axis 0 stacks layers;
        0 gives θ0, 1 gives θ, None in the tree means 1 (a head that θ0 does not have in trained form).

    Returns:
      A tree like params, in the dtypes of params; computed in float32 at least.

    Raises:
      ValueError: trees, shapes or kinds of leaves do not match, a vector has the wrong length, or a leaf that is to be
        interpolated is no array.

    Examples:
      >>> import jax.numpy as jnp, maps_optax as mx
      >>> mx.interpolate({"w": jnp.zeros(2)}, {"w": jnp.ones(2)}, 0.25)["w"].tolist()
      [0.25, 0.25]
    """
    flat = _tree.flatten(params)
    starts = _tree.align(pretrained, flat, "interpolate: pretrained")
    if _strength.is_number(alpha):
        alphas = [alpha] * len(starts)
    else:
        alphas = _tree.align(alpha, flat, "interpolate: alpha")
    leaves = []
    for path, start, end, a in zip(flat.paths, starts, flat.leaves, alphas):
        if a is None:
            leaves.append(end)
            continue
        _tree.check_shape(start, end, path, "interpolate: pretrained", "give two checkpoints of one model")
        if np.ndim(a) > 1 or (np.ndim(a) == 1 and np.shape(a) != np.shape(end)[:1]):
            raise ValueError(
                f"interpolate: alpha of leaf {_tree.name(path)!r} has shape {np.shape(a)}, but the leaf has "
                f"{np.shape(end)}; give a number, or a vector with one entry per slice of axis 0."
            )
        for side in (start, end):
            if not hasattr(side, "dtype"):
                raise ValueError(
                    f"interpolate: leaf {_tree.name(path)!r} is a {type(side).__name__}, not an array; make it one "
                    "with jnp.asarray, or give it alpha = None."
                )
        leaves.append(_between(start, end, a, path))
    return _tree.unflatten(flat, leaves)


def _between(start: Any, end: Any, alpha: Any, path: _tree.Path) -> Any:
    """(1 − α) start + α end, in the dtype of `end`."""
    if jnp.issubdtype(start.dtype, jnp.inexact) and jnp.issubdtype(end.dtype, jnp.inexact):
        dtype = jnp.float32 if end.dtype.itemsize == 1 else jnp.promote_types(end.dtype, jnp.float32)
        weight = _broadcast(jnp.asarray(alpha, dtype), np.ndim(end))
        first, last = jnp.asarray(start, dtype), jnp.asarray(end, dtype)
        mixed = (1 - weight) * first + weight * last
        # 0 · inf is NaN, and −0 + 0 is 0.
        return jnp.where(weight == 0, first, jnp.where(weight == 1, last, mixed)).astype(end.dtype)
    if start.dtype != end.dtype:
        raise ValueError(
            f"interpolate: leaf {_tree.name(path)!r} has dtype {start.dtype} in pretrained and {end.dtype} in params; "
            "give two checkpoints of one model, or alpha = None for it."
        )
    nearer = _broadcast(jnp.asarray(alpha, jnp.float32), np.ndim(end)) >= 0.5
    return jnp.where(jnp.broadcast_to(nearer, np.shape(end)), end, start)


def _broadcast(x: Any, ndim: int) -> Any:
    """A scalar or a vector along axis 0, shaped to multiply an array of `ndim` axes."""
    return x.reshape(x.shape + (1,) * (ndim - 1)) if x.ndim else x
