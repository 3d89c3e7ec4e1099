r"""Selective Projection Decay: pull a layer back to θ0 when the gradient no longer wants it to move away.

.. math::

  \tilde\theta_t &= \theta_{t-1} + u_t \\
  c_t &= -\langle g_t, \theta_{t-1} - \theta_0 \rangle \\
  r_t &= \max(\gamma_t - \gamma_{t-1}, 0) / \gamma_t, \qquad
    \gamma_t = \|\tilde\theta_t - \theta_0\|,\ \gamma_{t-1} = \|\theta_{t-1} - \theta_0\| \\
  \theta_t &= \tilde\theta_t - \lambda r_t (\tilde\theta_t - \theta_0) \ \text{ if } c_t < 0,
    \text{ else } \tilde\theta_t

with u_t the update of the optimizer before it and g_t the raw gradient. One c and one r per layer: a tensor, or a
slice along axis 0 of a leaf that stacks layers.
"""

import warnings
from collections.abc import Callable
from typing import Any, Optional

import jax
import jax.numpy as jnp
import numpy as np
import optax

from maps_optax import _adapt, _anchor, _callers, _decide, _devices, _inject, _strength, _sums, _tree

_NORMS = ("l2", "mars")
_CRITERIA = ("auto", "gradient")

ESTIMATE_WARNING = (
    "maps_optax estimates the trigger sign from the update, because `update` received no gradient. For the exact "
    "criterion build the optimizer with mx.chain(...) in place of optax.chain(...), or pass grad= to update."
)

MICRO_BATCH = (
    "grad= came through optax.MultiSteps, so it is one micro-batch's; leave it out, and build the optimizer inside "
    "MultiSteps with mx.chain, which hands on the accumulated gradient."
)

NOTHING_TO_ADAPT = "λ is 0, so every leaf is free and adapt has none to move; start from a small λ, such as 1e-3."


@_inject.takes_functions("adapt", of_params="strength")
def spd(
    strength: _strength.Strength,
    *,
    anchor: Any = None,
    anchor_dtype: Any = None,
    anchor_memory_kind: Optional[str] = None,
    norm: str = "l2",
    max_pull: Optional[float] = None,
    b1: float = 0.9,
    criterion: str = "auto",
    axis_name: Any = None,
    adapt: Optional[_adapt.Adapt] = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Selective Projection Decay, last in the chain: after the optimizer, the learning rate and weight decay.

    .. math::

      \theta_t = \tilde\theta_t - \lambda r_t (\tilde\theta_t - \theta_0) \ \text{ if }
      \langle g_t, \theta_{t-1} - \theta_0 \rangle > 0, \qquad
      r_t = \frac{\max(\gamma_t - \gamma_{t-1}, 0)}{\gamma_t},\
      \gamma_t = \|\tilde\theta_t - \theta_0\|_2

    λ = 0 leaves the optimizer as it is, λ < 1 lets the radius grow more slowly, λ = 1 keeps it at γ_{t−1}, λ > 1
    shrinks it (λ·r may exceed 1, as published; `max_pull` caps it).

    The criterion needs the raw gradient g_t. It is exact within `mx.chain`, or where `update` is given ``grad=``. With
    neither, as under plain `optax.chain`, momentum is taken out of the update u_t: with d = θ_{t−1} − θ0, the sign of
    (1 − b1^t)⟨u_t, d⟩ − b1(1 − b1^{t−1})⟨u_{t−1}, d⟩ stands for that of c_t. That is an estimate, assumes momentum
    `b1` as Adam has it, and warns once. (u_t itself in place of −g_t would make this a no-op: an update that points
    home does not lengthen the displacement, so r ≈ 0 wherever it triggers.)

    It acts on momentum. A step along −g_t alone, as plain `optax.sgd` makes it, does not lengthen the displacement
    where −g_t points home, and neither does the one inside `optax.contrib.schedule_free`: nothing is pulled there, and
    `mx.metrics` shows triggers without pulls. Put it outside `schedule_free`.

    What stands after it in the chain (a learning rate, weight decay, freezing, `apply_every`) changes the step that it
    has judged. It finds that out one step later, from the distance to θ0, and `mx.metrics` shows it as ``mismatch``.

    Statistics are float32, or float64 for float64 parameters, whatever the parameters' dtype; the update keeps its
    dtype. NaN and inf gradients never trigger, and the anchor never changes. A λ or `max_pull` that only exists when
    the step runs, and then is negative or no number, counts as 0.

    Args:
      strength: λ ≥ 0 as a number, a pytree shaped like params of numbers and 1-D arrays, or a callable
        `params -> such a pytree`. A number treats the leaf as one tensor; a 1-D array of length n says that axis 0
        stacks n layers, each with its own λ, c and r. 0 or None: the leaf is free, and no anchor is kept for it.
      anchor: θ0, a pytree like params; by default a copy of the params that `init` sees.
      anchor_dtype: dtype to keep θ0 in, by default its parameter's. bfloat16 is lossless only if θ0 was released so.
      anchor_memory_kind: ``"pinned_host"`` keeps θ0 in host memory, where the backend has it.
      norm: ``"l2"``, or ``"mars"``, the released code's ratio of L1 norms per row (axis 0 of the layer's tensor), with
        1e-8 added to each norm.
      max_pull: upper bound of λ·r; 1.0 never carries a layer past θ0. Default None, as published.
      b1: the momentum of the optimizer before, used by the estimate only.
      criterion: ``"auto"`` estimates where there is no gradient; ``"gradient"`` makes that an error.
      axis_name: mesh axis or axes over which to sum the statistics inside `shard_map` (or `pmap`). r and the trigger
        are exact whether or not a leaf is split over them; the reported drift of a leaf that is replicated over them
        counts each copy.
      adapt: a rule that moves λ, `hypergradient`, `drift_budget` or a callable `AdaptStats -> λ`, a vector with one
        entry per layer. `strength` is then where λ starts, and 0 there is free for good, also in a slice of a stacked
        leaf. Before each step the rule sees the step's gradient and what the step before did, and gives this step's λ,
        which the state carries in `strength`. A λ that is negative or not finite is not taken; the old one stays.

    Returns:
      A transformation whose state is an `SPDState`. Its `update` takes ``grad=`` as an extra argument.

    Raises:
      ValueError: bad options now, among them `adapt` with λ = 0 or ``norm="mars"``; at `init`, a λ that is negative,
        non-finite or of the wrong length, a tree that does not match, an integer leaf with λ ≠ 0; at `update`, missing
        params or, with ``criterion="gradient"``, gradient; updates that are the gradient itself, because no optimizer
        came before; a ``grad=`` that reached it through `optax.MultiSteps`, which is a micro-batch's.

    References:
      Tian et al., Rethinking Weight Decay for Robust Fine-Tuning of Foundation Models, NeurIPS 2024
      (arXiv 2411.01713); Huang et al., MAPS, arXiv 2511.19878, section 3.

    Examples:
      >>> import jax, jax.numpy as jnp, maps_optax as mx, optax
      >>> tx = mx.chain(optax.adam(0.1), mx.spd(1.0))
      >>> params = {"w": jnp.zeros(2)}
      >>> state = tx.init(params)
      >>> for target in (1.0, 1.0, -1.0):  # the last gradient asks to go back
      ...     grads = jax.grad(lambda p: jnp.sum((p["w"] - target) ** 2))(params)
      ...     updates, state = tx.update(grads, state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> mx.metrics(state)["triggered"].item()
      1.0
    """
    strength = _inject.unwrap(strength)
    if adapt is not None and isinstance(strength, (int, float)) and strength == 0:
        raise ValueError(f"mx.spd: {NOTHING_TO_ADAPT}")
    return selective_projection(
        lambda params: strength(params) if callable(strength) else strength,
        None,
        "mx.spd",
        anchor=anchor,
        anchor_dtype=anchor_dtype,
        anchor_memory_kind=anchor_memory_kind,
        norm=norm,
        max_pull=max_pull,
        b1=b1,
        criterion=criterion,
        axis_name=axis_name,
        adapt=adapt,
    )


def selective_projection(
    strength: Callable[[Any], Any],
    scale: Optional[Callable[[jax.Array], Any]],
    who: str,
    *,
    anchor: Any = None,
    anchor_dtype: Any = None,
    anchor_memory_kind: Optional[str] = None,
    norm: str = "l2",
    max_pull: Any = None,
    b1: Any = 0.9,
    criterion: str = "auto",
    axis_name: Any = None,
    adapt: Optional[_adapt.Adapt] = None,
) -> optax.GradientTransformationExtraArgs:
    """What `spd` and `maps` share: λ of a leaf at step t is strength(params) · scale(t). Options as in `spd`."""
    if norm not in _NORMS:
        raise ValueError(f"{who}: norm is {norm!r}; use one of {', '.join(_NORMS)}.")
    if criterion not in _CRITERIA:
        raise ValueError(f"{who}: criterion is {criterion!r}; use one of {', '.join(_CRITERIA)}.")
    if norm == "mars" and axis_name is not None:
        raise ValueError(f"{who}: norm='mars' needs whole rows, which axis_name may split; use norm='l2'.")
    if norm == "mars" and adapt is not None:
        raise ValueError(f"{who}: norm='mars' has a ratio per row, and adapt wants one per layer; use norm='l2'.")
    adapt = _inject.unwrap(adapt)
    if adapt is not None and not callable(adapt):
        raise ValueError(f"{who}: adapt is {adapt!r}; give a rule AdaptStats -> λ.")
    if anchor_dtype is not None and not jnp.issubdtype(anchor_dtype, jnp.floating):
        raise ValueError(f"{who}: anchor_dtype is {anchor_dtype}; it must be a floating-point dtype.")
    if isinstance(max_pull, (int, float)) and not max_pull >= 0:
        raise ValueError(f"{who}: max_pull is {max_pull}; it must not be negative.")
    if isinstance(b1, (int, float)) and not 0 <= b1 < 1:
        raise ValueError(f"{who}: b1 is {b1}; it must be in [0, 1).")
    warned = False

    def strengths_now(anchored: list[_strength.Anchored], count: Any) -> list[Any]:
        parts = [_strength.now(a) for a in anchored]
        if scale is None:
            return parts
        factor = _strength.bounded(jnp.asarray(scale(count), _sums.stat_dtype()))
        return [part * factor for part in parts]

    def init(params: Any) -> _anchor.SPDState:
        flat = _tree.flatten(params)
        anchored = _strength.plan(strength, flat, params, who)
        theta0 = _anchor.init(flat, [a.leaf for a in anchored], anchor, anchor_dtype, anchor_memory_kind, who)
        now = strengths_now(anchored, jnp.zeros((), jnp.int32))
        return _anchor.first_state(theta0, [a.layers or 1 for a in anchored], _sums.join(now))

    def update(
        updates: Any, state: _anchor.SPDState, params: Any = None, *, grad: Any = None, **extra_args: Any
    ) -> tuple[Any, _anchor.SPDState]:
        nonlocal warned
        del extra_args
        if params is None:
            raise ValueError(f"{who} needs the current parameters; call tx.update(grads, opt_state, params).")
        if isinstance(state.anchor, _anchor.DetachedAnchor):
            raise ValueError(f"{who}: the anchor is detached; call mx.attach_anchor(opt_state, pretrained) first.")
        flat = _tree.flatten(params)
        anchored = _strength.plan(strength, flat, params, who)
        steps = _tree.align(updates, flat, f"{who}: updates")
        anchors = _tree.align(state.anchor, flat, f"{who}: the state's anchor")
        _check_layout(flat, anchored, anchors, state, who)
        if grad is None and anchored:
            if criterion == "gradient":
                raise ValueError(
                    f"{who}: criterion='gradient' but update received no gradient; use mx.chain, or pass grad=."
                )
            if not warned:
                warned = True
                warnings.warn(ESTIMATE_WARNING, stacklevel=_callers.outside())
        if grad is not None and _callers.gives_micro_batch():
            raise ValueError(f"{who}: {MICRO_BATCH}")
        grads = [None] * len(steps) if grad is None else _tree.align(grad, flat, f"{who}: grad")

        member = _callers.is_member()
        layers = []
        for a in anchored:
            theta0 = anchors[a.leaf] if anchor_memory_kind is None else _anchor.on_device(anchors[a.leaf])
            _tree.check_shape(steps[a.leaf], theta0, flat.paths[a.leaf], f"{who}: updates", _tree.AS_GRADIENTS)
            if grad is not None:
                _tree.check_shape(grads[a.leaf], theta0, flat.paths[a.leaf], f"{who}: grad", _tree.AS_GRADIENTS)
                if member:
                    check_is_step(steps[a.leaf], grads[a.leaf], flat.paths[a.leaf], who)
            layers.append(_sums.widen(a, flat.leaves[a.leaf], theta0, steps[a.leaf], grads[a.leaf], norm))
        exact = grad is not None
        count = optax.safe_int32_increment(state.count)
        now = strengths_now(anchored, state.count)
        splits = np.cumsum([a.layers or 1 for a in anchored], dtype=int)[:-1]
        # Whether the state's ‖θ0‖ is that of a part or of the whole, nothing tells inside `shard_map`.
        sums = [_sums.sums_of(layer, norm, with_anchor=axis_name is not None) for layer in layers]
        norms = state.norm
        if axis_name is not None and sums:
            sums = _sums.psum(sums, axis_name)
            norms = _sums.root(_sums.concatenate(sums).anchor.sum(axis=1))
        if not anchored:
            return _tree.unflatten(flat, steps), state._replace(count=count, strength=_sums.join(now))
        shares = None if exact else _decide.shares(b1, count)
        eps = [_decide.rounding(a, flat.leaves[a.leaf], steps[a.leaf]) for a in anchored]
        carries = jnp.split(state.carry, splits)
        if norm == "l2":  # one row per layer: all layers are judged at once
            whole = _sums.concatenate(sums)
            verdict = _decide.judge(whole, state.carry, shares)
            lam = _sums.join(now)
            if adapt is not None:
                lam = _adapted(adapt, whole, verdict, norms, state, lam, anchored, who)
                now = jnp.split(lam, splits)
            before = _decide.Before(state.drift, norms, np.concatenate(eps))
            decided = [_decide.decide(whole, verdict, lam, before, exact, max_pull)]
            own = list(zip(sums, carries, now))
            # Of leaves that stack layers XLA's GPU compiler keeps a copy where all are estimated at once.
            gpu = exact or not any(a.layers for a in anchored)
            pulls = _devices.split(decided[0].pull, _decide.pull_of_sums, own, (shares, max_pull), splits, gpu)
        else:
            judged = [_decide.judge(s, carry, shares) for s, carry in zip(sums, carries)]
            vectors = jnp.split(state.drift, splits), jnp.split(norms, splits)
            found = [_decide.Before(*each) for each in zip(*vectors, eps)]
            decided = [_decide.decide(*each, exact, max_pull) for each in zip(sums, judged, now, found)]
            pulls = [d.pull for d in decided]
        for a, layer, pull in zip(anchored, layers, pulls):
            steps[a.leaf] = _decide.project(layer, pull, steps[a.leaf].dtype)
        new_state = state._replace(
            count=count,
            strength=_sums.join(now),
            carry=_sums.join([d.carry for d in decided]),
            drift=_sums.join([d.drift for d in decided]),
            triggered=_sums.join([d.triggered for d in decided]),
            pull=_sums.join([d.pull.sum(axis=1) / max(d.pull.shape[1], 1) for d in decided]),
            mismatch=_sums.join([d.mismatch for d in decided]),
        )
        return _tree.unflatten(flat, steps), new_state

    return optax.GradientTransformationExtraArgs(init, update)


def _adapted(
    adapt: _adapt.Adapt,
    s: _sums.Sums,
    verdict: _decide.Verdict,
    norms: jax.Array,
    state: _anchor.SPDState,
    start: jax.Array,
    anchored: list[_strength.Anchored],
    who: str,
) -> jax.Array:
    """λ of this step, (n,)."""
    old = state.strength
    stats = _adapt.AdaptStats(
        count=state.count,
        start=start,
        strength=old,
        triggered=state.triggered,
        pull=state.pull,
        home=jnp.sign(jnp.where(jnp.isfinite(verdict.home), verdict.home, 0)).astype(old.dtype),
        ratio=verdict.ratio[:, 0],
        drift=_sums.root(s.dd[:, 0]),
        norm=norms,
    )
    new = jnp.asarray(adapt(stats), old.dtype)
    if new.shape not in ((), old.shape):
        raise ValueError(f"{who}: adapt gives λ of shape {new.shape} for {old.shape[0]} layers; return one per layer.")
    new = jnp.where((new >= 0) & jnp.isfinite(new), new, old)
    return jnp.where(np.concatenate([_starts_free(a) for a in anchored]), 0, new)


def _starts_free(a: _strength.Anchored) -> np.ndarray:
    """Which of a leaf's layers are known to have λ = 0 at the start, (layers,)."""
    known = np.atleast_1d(a.strength) if isinstance(a.strength, np.ndarray) else np.ones(a.layers or 1)
    return known == 0


def check_is_step(u: Any, g: Any, path: _tree.Path, who: str) -> None:
    """Refuses an update that is the gradient itself."""
    if u is g:
        raise ValueError(
            f"{who}: the update of leaf {_tree.name(path)!r} is the gradient itself, so no optimizer came before; put "
            f"{who} last, after the optimizer, in one mx.chain with it."
        )


def _check_layout(
    flat: _tree.Flat, anchored: list[_strength.Anchored], anchors: list[Any], state: _anchor.SPDState, who: str
) -> None:
    wanted = {a.leaf for a in anchored}
    for i, (path, leaf, theta0) in enumerate(zip(flat.paths, flat.leaves, anchors)):
        if _tree.is_masked(theta0) == (i in wanted):
            was = "free" if _tree.is_masked(theta0) else "anchored"
            raise ValueError(f"{who}: leaf {_tree.name(path)!r} was {was} at init and is not now; call init again.")
        if i in wanted and tuple(theta0.shape) != tuple(leaf.shape):
            raise ValueError(
                f"{who}: leaf {_tree.name(path)!r} has shape {tuple(leaf.shape)}, but its anchor has "
                f"{tuple(theta0.shape)}; this state belongs to other parameters."
            )
    size = sum(a.layers or 1 for a in anchored) or 1
    if state.strength.shape != (size,):
        raise ValueError(
            f"{who}: the parameters have {size} layers, but the state {state.strength.shape[0]}; call init again "
            "(inside shard_map, the axis that stacks layers must not be split)."
        )
