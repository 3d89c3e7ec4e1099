r"""Selective Projection Decay of low-rank adapters: of the product they add to a kernel, or of each factor.

A kernel W = W0 + s A B is displaced by :math:`\Delta = s A B`, which is known without θ0 and never formed: with
:math:`\partial L / \partial B = s A^\top \partial L / \partial W`,

.. math::

  c &= -\langle \partial L / \partial W, \Delta \rangle = -\langle \partial L / \partial B, B \rangle \\
  \langle X Y, Z W \rangle &= \textstyle\sum_{ij} (X^\top Z)_{ij} (Y W^\top)_{ij} \qquad (r \times r) \\
  \tilde\Delta - \Delta &= s (U \tilde B + A V), \qquad \tilde A = A + U,\ \tilde B = B + V \\
  \Delta_t &= (1 - \lambda r_t) \tilde\Delta, \text{ by } B_t = (1 - \lambda r_t) \tilde B
"""

import collections
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Optional, Union

import jax
import jax.numpy as jnp
import numpy as np
import optax

from maps_optax import _anchor, _callers, _decide, _inject, _spd, _strength, _sums, _tree

Pairs = Union[Mapping[str, str], Callable[[str], Optional[str]]]

# flax, nnx and openpi (`gating_einsum_lora_a` among them) write the first, PEFT the second.
_DEFAULT_PAIRS = {r"lora_a$": "lora_b", r"\blora_A\b": "lora_B"}
_TREATMENTS = ("product", "init", "zero")
_WHO = "mx.lora_spd"


@_inject.takes_functions("pairs", of_params="strength")
def lora_spd(
    strength: _strength.Strength,
    *,
    pairs: Optional[Pairs] = None,
    scale: float = 1.0,
    treatment: str = "product",
    max_pull: Optional[float] = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Selective Projection Decay of low-rank adapters, placed in `mx.chain` after the optimizer that makes the step.

    An adapter adds s A B to a pretrained kernel W0, so the adapted kernel's displacement from θ0 is

    .. math::

      \Delta = s A B, \qquad c = -\langle \partial L / \partial W, \Delta \rangle
      = -\langle \partial L / \partial B, B \rangle, \qquad
      \Delta_t = (1 - \lambda r_t) \tilde\Delta_t \ \text{ if } c < 0

    with r_t as in `spd`, from the Frobenius norms of Δ before and after the step. That is `spd` on the merged kernel,
    from a few r × r matrices: neither Δ nor θ0 is formed or kept. B alone is scaled, and A is left to the optimizer.
    ``treatment="product"`` is this library's; the two published ones are there to compare with, and hold each factor by
    itself with `spd`:

    * ``"init"``: to its own start, A random and B zero, as MAPS' released training does (arXiv 2511.19878);
    * ``"zero"``: to zero, as Selective Projection Decay's code for LoRA does (arXiv 2411.01713).

    The norm of one factor says little of Δ: A B is the same for A/2 and 2B, and at its start A is far from zero while
    Δ = 0. Adapters are of Hu et al., LoRA, arXiv 2106.09685.

    All other leaves pass through. Statistics are as in `spd`: float32 or more, no trigger on NaN. Leaves stay whole
    under `jit` with shardings; inside `shard_map` adapters must not be split.

    Args:
      strength: λ ≥ 0 as a number, a pytree shaped like params, or a callable `params -> such a pytree`. A pair's λ is
        read at A or at B (None at the other, or the same at both), and the λ of all other leaves is passed over. A
        number takes the pair as one tensor; a 1-D array of length n says that axis 0 of A and B stacks n layers.
        Further leading axes, such as openpi's heads, are summed over. 0 or None: the pair is free.
      pairs: which leaves are A, and where their B is: a mapping from a pattern that is searched for in A's path
        'a/b/c' to what replaces the match in B's path, or a callable `path of A -> path of B, or None`. By default
        ``lora_a`` and ``lora_b`` at a path's end (flax, nnx, openpi), and ``lora_A`` and ``lora_B`` within it (PEFT).
        A is [in, r] with B [r, out], or, as PEFT has them, A is [r, in] with B [out, r]; where shapes allow both, the
        smaller r is meant.
      scale: s, alpha / rank. It cancels in c and r, and is in the drift that `mx.metrics` shows for ``"product"``.
      treatment: ``"product"``, ``"init"`` or ``"zero"``.
      max_pull: upper bound of λ·r, as in `spd`.

    Returns:
      A transformation whose state is an `SPDState`. With ``"product"`` it has no anchor, and one entry per pair (or
      layer of one), whose drift is ‖Δ‖; with the others one per factor. `mx.metrics` names them by path, a pair by B's,
      or by layer where the stack has a place for adapters. The others keep an anchor that is not in any published
      checkpoint, so `attach_anchor` needs the adapters' start, or zeros.

    Raises:
      ValueError: bad options now; at `init`, no adapter found, a pattern that matches no leaf, an A without its B,
        shapes that do not fit, or a bad λ; at `update`, no params or no gradient.

    Examples:
      >>> import jax.numpy as jnp, maps_optax as mx, optax
      >>> tx = mx.chain(optax.sgd(0.1, momentum=0.9), mx.lora_spd(1.0, scale=2.0))
      >>> params = {"kernel": jnp.ones((3, 2)), "lora_a": jnp.ones((3, 1)), "lora_b": jnp.zeros((1, 2))}
      >>> state = tx.init(params)
      >>> for slope in (-1.0, 0.1):  # the second gradient asks to go back, while momentum goes on
      ...     grads = {"kernel": jnp.zeros((3, 2)), "lora_a": jnp.zeros((3, 1)), "lora_b": jnp.full((1, 2), slope)}
      ...     updates, state = tx.update(grads, state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> {k: round(float(v), 4) for k, v in mx.metrics(state).items() if k in ("drift", "triggered", "pull")}
      {'drift': 0.4899, 'triggered': 1.0, 'pull': 0.4444}
    """
    strength, pairs = _inject.unwrap(strength), _inject.unwrap(pairs)
    if treatment not in _TREATMENTS:
        raise ValueError(f"{_WHO}: treatment is {treatment!r}; use one of {', '.join(_TREATMENTS)}.")
    if isinstance(scale, (int, float)) and not scale > 0:
        raise ValueError(f"{_WHO}: scale is {scale}; it must be positive (alpha / rank).")

    def plan(params: Any, factors: bool) -> Any:
        """λ as a pytree like params: at B of each pair, with `factors` at A too, None elsewhere."""
        flat = _tree.flatten(params)
        values: list[Any] = [None] * len(flat.leaves)
        found = _find(pairs, flat)
        for pair, value in zip(found, _per_pair(strength, found, flat, params)):
            values[pair.b] = value
            if factors:
                values[pair.a] = value
        return _tree.unflatten(flat, values)

    if treatment == "product":
        return _product(lambda params: plan(params, False), pairs, scale, max_pull)
    each = _spd.selective_projection(
        lambda params: plan(params, True), None, _WHO, max_pull=max_pull, criterion="gradient"
    )
    if treatment == "init":
        return each

    def init(params: Any) -> _anchor.SPDState:
        state = each.init(params)
        return state._replace(anchor=jax.tree_util.tree_map(_zero, state.anchor), norm=jnp.zeros_like(state.norm))

    return optax.GradientTransformationExtraArgs(init, each.update)


class _Pair(NamedTuple):
    """Where A and B are among the leaves of the flattened tree."""

    a: int
    b: int


def _product(
    strength: Callable[[Any], Any], pairs: Optional[Pairs], scale: float, max_pull: Any
) -> optax.GradientTransformationExtraArgs:
    if isinstance(max_pull, (int, float)) and not max_pull >= 0:
        raise ValueError(f"{_WHO}: max_pull is {max_pull}; it must not be negative.")

    def plan(params: Any) -> tuple[_tree.Flat, list[_Pair], list[_strength.Anchored]]:
        """The pairs with λ ≠ 0."""
        flat = _tree.flatten(params)
        held = _strength.plan(strength, flat, params, _WHO)
        of_b = {pair.b: pair for pair in _find(pairs, flat)}
        chosen = [of_b[h.leaf] for h in held]
        for pair, h in zip(chosen, held):
            _check_pair(pair, h, flat)
        return flat, chosen, held

    def strengths_now(held: list[_strength.Anchored]) -> jax.Array:
        return _sums.join([_strength.now(h) for h in held])

    def init(params: Any) -> _anchor.SPDState:
        flat, chosen, held = plan(params)
        leaves: list[Any] = [optax.MaskedNode()] * len(flat.leaves)
        for pair, h in zip(chosen, held):
            leaves[pair.b] = _anchor.Adapter(((),) * (h.layers or 0))
        return _anchor.first_state(_tree.unflatten(flat, leaves), [h.layers or 1 for h in held], strengths_now(held))

    def update(
        updates: Any, state: _anchor.SPDState, params: Any = None, *, grad: Any = None, **extra_args: Any
    ) -> tuple[Any, _anchor.SPDState]:
        del extra_args
        if params is None:
            raise ValueError(f"{_WHO} needs the current parameters; call tx.update(grads, opt_state, params).")
        flat, chosen, held = plan(params)
        if grad is None and held:
            raise ValueError(f"{_WHO} received no gradient, and makes no estimate; use mx.chain, or pass grad=.")
        if grad is not None and _callers.gives_micro_batch():
            raise ValueError(f"{_WHO}: {_spd.MICRO_BATCH}")
        now = strengths_now(held)
        if state.strength.shape != now.shape:
            raise ValueError(
                f"{_WHO}: the parameters have {now.shape[0]} adapters, but the state {state.strength.shape[0]}; call "
                "init again."
            )
        steps = _tree.align(updates, flat, f"{_WHO}: updates")
        new_state = state._replace(count=optax.safe_int32_increment(state.count), strength=now)
        if not held:
            return updates, new_state
        grads = _tree.align(grad, flat, f"{_WHO}: grad")

        member = _callers.is_member()
        layers, sums, norms, eps = [], [], [], []
        for pair, h in zip(chosen, held):
            for what, tree, i in (("updates", steps, pair.a), ("updates", steps, pair.b), ("grad", grads, pair.b)):
                _tree.check_shape(tree[i], flat.leaves[i], flat.paths[i], f"{_WHO}: {what}", _tree.AS_GRADIENTS)
            if member:
                _spd.check_is_step(steps[pair.b], grads[pair.b], flat.paths[pair.b], _WHO)
            given = (flat.leaves[pair.a], flat.leaves[pair.b], steps[pair.a], steps[pair.b], grads[pair.b])
            dtype = jnp.result_type(jnp.float32, *(x.dtype for x in given))
            a, b, u, v, g = (x.astype(dtype) for x in given)
            layers.append(_sums.Layer(b, v, g, None, h.layers is not None))
            s, norm = _of_product(a, u, layers[-1], scale)
            sums.append(s)
            norms.append(norm)
            eps.append(_decide.rounding(h, flat.leaves[pair.b], steps[pair.b]))
        s = jax.tree_util.tree_map(lambda *parts: jnp.concatenate(parts)[:, None], *sums)
        before = _decide.Before(state.drift, jnp.concatenate(norms), np.concatenate(eps))
        verdict = _decide.Verdict(s.sign[:, 0], _decide.ratio(s))
        decided = _decide.decide(s, verdict, now, before, True, max_pull)
        pulls = jnp.split(decided.pull, np.cumsum([h.layers or 1 for h in held])[:-1])
        for pair, layer, pull in zip(chosen, layers, pulls):
            steps[pair.b] = _decide.project(layer, pull, steps[pair.b].dtype)
        return _tree.unflatten(flat, steps), new_state._replace(
            drift=decided.drift,
            triggered=decided.triggered,
            pull=decided.pull[:, 0],
            mismatch=decided.mismatch,
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _of_product(a: jax.Array, u: jax.Array, layer: _sums.Layer, scale: float) -> tuple[_sums.Sums, jax.Array]:
    """‖Δ‖², its growth and ⟨g, B⟩ over each layer of a pair, and a bound of ‖Δ‖ that its rounding goes by, (n,)."""
    b, v, g = layer.theta, layer.u, layer.g
    assert g is not None
    if _is_transposed(a.shape, b.shape):  # Δ = B A: B is the left factor
        left, right, d_left, d_right = b, a, v, u
    else:
        left, right, d_left, d_right = a, b, u, v

    def inner(x: jax.Array, y: jax.Array) -> jax.Array:
        return _gram("...ir,...is->...rs", x, y)

    def outer(x: jax.Array, y: jax.Array) -> jax.Array:
        return _gram("...ro,...so->...rs", x, y)

    def total(x: jax.Array) -> jax.Array:
        x = jnp.sum(x, axis=tuple(range(int(layer.stacked), x.ndim)))
        return jnp.atleast_1d(_sums.crossed(x) if layer.stacked else x).astype(_sums.stat_dtype())

    after = right + d_right
    ll, dl, dd = inner(left, left), inner(d_left, left), inner(d_left, d_left)
    # With D = Δ̃ − Δ = d_left · after + left · d_right: ‖Δ̃‖² − ‖Δ‖² = 2⟨D, Δ⟩ + ‖D‖², which does not cancel.
    crossing = dl * outer(after, right + d_right) + ll * outer(d_right, right)
    squared = dd * outer(after, after) + ll * outer(d_right, d_right)
    sums = _sums.Sums(
        dd=jnp.maximum(total(ll * outer(right, right)), 0) * scale**2,
        growth=total(2 * crossing + squared) * scale**2,
        sign=total(g * b),
    )
    return sums, _sums.root(total(a * a) * total(b * b)) * scale  # rounding A and B moves Δ by no more than ‖A‖‖B‖


def _gram(formula: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """An r × r matrix for each leading index, in full precision: TPUs and GPUs would round float32 products."""
    options: dict[str, Any] = {}
    if hasattr(jax, "typeof"):  # a mesh with explicit axes leaves the result's sharding to us
        spec = jax.typeof(x).sharding.spec
        if any(axis is not None for axis in spec[-2:]):
            options["out_sharding"] = jax.sharding.PartitionSpec(*spec[:-2], None, None)
    return jnp.einsum(formula, x, y, precision=jax.lax.Precision.HIGHEST, **options)


def _is_transposed(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether A is [r, in] and B [out, r], as in PEFT."""
    return a[-2] == b[-1] and (a[-1] != b[-2] or a[-2] < a[-1])


def _find(pairs: Optional[Pairs], flat: _tree.Flat) -> list[_Pair]:
    if not flat.paths:  # a placeholder: see `_strength.plan`
        return []
    rules = _DEFAULT_PAIRS if pairs is None else pairs
    places = {_tree.name(path): i for i, path in enumerate(flat.paths)}
    names = collections.Counter(map(_tree.name, (*flat.paths, *flat.masked)))
    twice = {name for name, count in names.items() if count > 1}  # {"a/b": x, "a": {"b": y}}
    hidden = {_tree.name(path) for path in flat.masked}
    idle = [] if callable(rules) else list(rules)
    found, masked_out = [], 0
    for name in (*places, *hidden):
        partner: Optional[str] = None
        if callable(rules):
            partner = rules(name)
        else:
            for pattern, replacement in rules.items():
                if re.search(pattern, name):
                    idle = [rule for rule in idle if rule != pattern]
                    partner = re.sub(pattern, replacement, name) if partner is None else partner
        if partner is None:
            continue
        for factor in (name, partner):
            if factor in twice:
                raise ValueError(f"{_WHO}: two leaves read {factor!r}, with and without a '/' in a key; rename one.")
        if name in hidden and partner not in places:
            masked_out += 1
            continue
        if name in hidden or partner not in places:
            whole, lost = (partner, name) if name in hidden else (name, partner)
            raise ValueError(
                f"{_WHO}: leaf {whole!r} has no partner {lost!r} among the parameters; keep both factors together, or "
                "give pairs= the rule that finds B."
            )
        found.append(_Pair(places[name], places[partner]))
    if pairs is not None and idle and not hidden:  # what is masked out may have hidden its match
        raise ValueError(f"{_WHO}: pattern {idle[0]!r} of pairs matches no leaf; correct it or leave it out.")
    if not found and not masked_out:
        raise ValueError(
            f"{_WHO}: no leaf is the A of an adapter; give pairs= a rule that finds A and B, or leave it out."
        )
    return sorted(found, key=lambda pair: pair.b)


def _per_pair(strength: Any, found: list[_Pair], flat: _tree.Flat, params: Any) -> list[Any]:
    """λ of each pair, None where it is free."""
    if not found:
        return []
    if callable(strength):
        strength = strength(params)
    if _strength.is_number(strength):
        return [strength] * len(found)
    values = _tree.align(strength, flat, f"{_WHO}: strength")
    return [_agreed(values[pair.a], values[pair.b], flat.paths[pair.b]) for pair in found]


def _agreed(at_a: Any, at_b: Any, path: _tree.Path) -> Any:
    at_a, at_b = (None if _tree.is_masked(x) else x for x in (at_a, at_b))
    if at_a is None or at_b is None:
        return at_b if at_a is None else at_a
    traced = isinstance(at_a, jax.core.Tracer) or isinstance(at_b, jax.core.Tracer)
    if not traced and not np.array_equal(np.asarray(at_a), np.asarray(at_b)):
        raise ValueError(
            f"{_WHO}: λ is {at_a} at the A and {at_b} at the B of {_tree.name(path)!r}; give a pair one λ, and None or "
            "the same at its other factor."
        )
    return at_b


def _check_pair(pair: _Pair, held: _strength.Anchored, flat: _tree.Flat) -> None:
    a, b = (tuple(np.shape(flat.leaves[i])) for i in pair)
    name_a, name_b = (_tree.name(flat.paths[i]) for i in pair)
    least = 2 if held.layers is None else 3
    fits = len(a) == len(b) >= least and a[:-2] == b[:-2] and (a[-1] == b[-2] or a[-2] == b[-1])
    if not fits:
        raise ValueError(
            f"{_WHO}: leaf {name_a!r} has shape {a} and {name_b!r} {b}, with λ of shape {held.strength.shape}; give "
            "[in, r] and [r, out] (or [r, in] and [out, r]) after equal leading axes, the first of which λ may stack."
        )
    if str(flat.leaves[pair.a].dtype) not in _tree.DTYPES:
        raise ValueError(f"{_WHO}: leaf {name_a!r} has dtype {flat.leaves[pair.a].dtype}; give this pair λ = None.")


def _zero(leaf: Any) -> Any:
    return leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jnp.zeros_like(leaf)
