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
            dtype = jnp.promote_types(jnp.promote_types(theta.dtype, g.dtype), jnp.float32)
            lam = _broadcast(_strength.now(a).astype(dtype)[... if a.layers else 0], theta.ndim)
            grads[a.leaf] = (g.astype(dtype) + lam * (theta.astype(dtype) - theta0.astype(dtype))).astype(g.dtype)
        return _tree.unflatten(flat, grads), state

    return optax.GradientTransformationExtraArgs(init, update)


def interpolate(pretrained: Any, params: Any, alpha: Union[float, Any]) -> Any:
    r"""Interpolation in weight space between θ0 and the fine-tuned θ: WiSE-FT, and per-module merges.

    .. math:: \theta_\alpha = (1 - \alpha)\,\theta_0 + \alpha\,\theta

    (Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022.)

    Args:
      pretrained: θ0, a tree that has every leaf of params.
      params: θ, the fine-tuned parameters.
      alpha: a number, or a pytree like params of numbers and of 1-D arrays for leaves whose axis 0 stacks layers;
        0 gives θ0, 1 gives θ, None in the tree means 1 (a head that θ0 does not have in trained form).

    Returns:
      A tree like params, in the dtypes of params; computed in float32 at least.

    Raises:
      ValueError: trees or shapes do not match, or a vector has the wrong length.

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
        if np.shape(start) != np.shape(end):
            raise ValueError(
                f"interpolate: leaf {_tree.name(path)!r} has shape {np.shape(start)} in pretrained and "
                f"{np.shape(end)} in params; give two checkpoints of one model."
            )
        if np.ndim(a) > 1 or (np.ndim(a) == 1 and np.shape(a) != np.shape(end)[:1]):
            raise ValueError(
                f"interpolate: alpha of leaf {_tree.name(path)!r} has shape {np.shape(a)}, but the leaf has "
                f"{np.shape(end)}; give a number, or a vector with one entry per slice of axis 0."
            )
        dtype = jnp.promote_types(end.dtype, jnp.float32)
        weight = _broadcast(jnp.asarray(a, dtype), np.ndim(end))
        first, last = jnp.asarray(start, dtype), jnp.asarray(end, dtype)
        leaves.append(((1 - weight) * first + weight * last).astype(end.dtype))
    return _tree.unflatten(flat, leaves)


def _broadcast(x: Any, ndim: int) -> Any:
    """A scalar or a vector along axis 0, shaped to multiply an array of `ndim` axes."""
    return x.reshape(x.shape + (1,) * (ndim - 1)) if x.ndim else x
