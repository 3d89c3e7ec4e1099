"""θ0: copied, placed, fingerprinted, taken out of a checkpoint and put back."""

import functools
import zlib
from typing import Any, NamedTuple, Optional

import jax
import jax.numpy as jnp
import numpy as np
import optax

from maps_optax import _sums, _tree


class DetachedAnchor(NamedTuple):
    """What `detach_anchor` leaves in θ0's place.

    Attributes:
      fingerprints: θ0's tree with a uint32 array (3,) for each anchored leaf: two hash words and a dtype code.
    """

    fingerprints: Any


class _Layers(NamedTuple):
    layers: tuple[tuple[()], ...] = ()


class Adapter(_Layers, optax.MaskedNode):
    """Stands in an anchor's tree for the B of an adapter whose product is held: there is no θ0 to keep.

    A kind of `MaskedNode`, so that whoever passes over those passes over this.

    Attributes:
      layers: an empty tuple for each layer that it is held as, none where it is held whole: a number that belongs to
        the tree's structure, so it is known under `jit`, and kept by whatever stores trees.
    """


class L2SPState(NamedTuple):
    """State of `l2_sp`: `anchor` is θ0, a tree like params with `optax.MaskedNode` for free leaves."""

    anchor: Any


class SPDState(NamedTuple):
    """State of `spd`, `maps` and `lora_spd`.

    Per-layer numbers are packed in vectors of length K, one entry per anchored tensor and one per slice of a stacked
    leaf, in flattening order: `optax.tree_utils.tree_map_params` would give a per-leaf scalar its parameter's
    sharding, and fail on its rank. Where nothing is anchored they have one entry all the same, which stays 0 and
    belongs to no leaf: Orbax saves no empty array.

    Attributes:
      count: steps taken, int32.
      anchor: θ0, a tree like params with `optax.MaskedNode` for free leaves (and all of ``lora_spd``'s product).
      leaf: which of the anchored leaves an entry belongs to, int32 (K,); −1: to none.
      norm: ‖θ0‖, (K,); 0 for `lora_spd`.
      mismatch: by how much of itself ‖θ − θ0‖ was, before the last step, another than the `drift` of the step before,
        (K,); 0 within rounding. Otherwise something after this transformation changes the step.
      drift: ‖θ − θ0‖ after the last step, (K,). Squares are summed in float32, so it is 0 below about 1e-19 and not
        finite above about 1e19; a layer out there is never pulled, and its update passes untouched.
      carry: ⟨u, θ − θ0⟩ after the last step, (K,), for the momentum-free estimate.
      strength: λ of the last step, and of the first before it, (K,). Where `adapt` moves λ, this is what it moves.
      triggered: 1 where c < 0 in the last step, else 0, (K,).
      pull: λ·r in the last step, (K,); 0 where not triggered; the mean over rows for ``norm="mars"``.
    """

    # JAX gives the memory of donated vectors to the outputs in this order. What a step reads, `drift` and `carry`, goes
    # to `mismatch` and `drift`, which it is read for; another order costs a copy.

    count: Any
    anchor: Any
    leaf: Any
    norm: Any
    mismatch: Any
    drift: Any
    carry: Any
    strength: Any
    triggered: Any
    pull: Any


STATES: tuple[type, ...] = (SPDState, L2SPState)


def first_state(anchor: Any, layers: list[int], strength: jax.Array) -> SPDState:
    """The state of step 0, of leaves that have so many layers each."""
    leaf = jnp.asarray(np.repeat(np.arange(len(layers), dtype=np.int32), layers) if layers else [-1], jnp.int32)
    # Apart, so that none is donated twice.
    mismatch, drift, carry, triggered, pull = (jnp.zeros(strength.shape, strength.dtype) for _ in range(5))
    norm = norms(_tree.flatten(anchor).leaves, leaf)
    return SPDState(jnp.zeros((), jnp.int32), anchor, leaf, norm, mismatch, drift, carry, strength, triggered, pull)


def norms(theta0: list[Any], leaf: jax.Array) -> jax.Array:
    """‖θ0‖ of each entry of `SPDState.leaf`, also of one that `jax.vmap` made.

    Under `jit` nobody knows which leaves stack layers, but how many entries a leaf has tells it when the program runs.
    """
    if not theta0 or isinstance(theta0[0], jax.ShapeDtypeStruct):
        return jnp.zeros(leaf.shape, _sums.stat_dtype())
    return _norms(theta0, leaf)


@jax.jit
def _norms(theta0: list[Any], leaf: jax.Array) -> jax.Array:
    if leaf.ndim > 1:
        return jax.vmap(_norms)(theta0, leaf)
    squared = jnp.zeros(leaf.shape, _sums.stat_dtype())
    entries = jnp.bincount(leaf, length=len(theta0))
    for x, first, count in zip(theta0, jnp.cumsum(entries) - entries, entries):
        if hasattr(jax, "memory") and jax.typeof(x).memory_space == jax.memory.Space.Host:
            x = on_device(x)  # not of every leaf: the result would be bound to the device where `init` ran
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        rows = _everywhere(jnp.sum(x * x, axis=tuple(range(1, x.ndim))).reshape(-1).astype(squared.dtype))
        squared = squared.at[first + jnp.where(count > 1, jnp.arange(rows.size), 0)].add(rows)
    return jnp.sqrt(squared)


def _everywhere(x: jax.Array) -> jax.Array:
    """A small array on every device, where a mesh with explicit axes leaves it to us."""
    if not hasattr(jax.sharding, "reshard"):
        return x
    sharding = jax.typeof(x).sharding
    if all(axis is None for axis in sharding.spec):
        return x
    return jax.sharding.reshard(x, jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec()))


def copy(leaf: Any, dtype: Any = None, memory_kind: Optional[str] = None) -> Any:
    """A copy of `leaf` that shares no buffer with it, cast to `dtype` and placed in `memory_kind`.

    `astype`, `asarray` and `device_put` may alias, and a donated train state would then be donated twice.
    """
    # float64 of NumPy's is float32 to a JAX without x64, which would say so each time.
    dtype = jax.dtypes.canonicalize_dtype(leaf.dtype if dtype is None else dtype)
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(leaf.shape, dtype)
    array = jnp.array(leaf, dtype=dtype, copy=True)
    if memory_kind is None:
        return array
    if isinstance(array, jax.core.Tracer):
        return jax.device_put(array, _host_space(memory_kind))
    try:
        return jax.device_put(array, array.sharding.with_memory_kind(memory_kind))
    except ValueError as error:
        raise ValueError(
            f"this backend has no memory {memory_kind!r} for the anchor; leave anchor_memory_kind out ({error})."
        ) from None


def on_device(leaf: Any) -> Any:
    """An anchor that may be kept in host memory, brought to the device; a JAX without `jax.memory` keeps none there."""
    return jax.device_put(leaf, jax.memory.Space.Device) if hasattr(jax, "memory") else leaf


def _host_space(memory_kind: str) -> Any:
    if not hasattr(jax, "memory"):
        raise ValueError("anchor_memory_kind inside jit needs a JAX with jax.memory; call init outside jit.")
    return jax.memory.Space.Host


def init(
    flat: _tree.Flat,
    keep: list[int],
    given: Any,
    dtype: Any,
    memory_kind: Optional[str],
    who: str,
) -> Any:
    """θ0 for the leaves at the indices `keep`: the params seen now, or the tree `given`; masked elsewhere."""
    sources = flat.leaves
    if given is not None and flat.paths:
        sources = _tree.align(given, flat, f"{who}: anchor")
    leaves: list[Any] = [optax.MaskedNode()] * len(flat.leaves)
    for i in keep:
        leaf, source = flat.leaves[i], sources[i]
        _tree.check_shape(source, leaf, flat.paths[i], f"{who}: anchor", "give θ0 of this model")
        if str(jnp.dtype(dtype or leaf.dtype)) not in _tree.DTYPES:
            raise ValueError(
                f"{who}: the anchor of leaf {_tree.name(flat.paths[i])!r} has dtype {dtype}; use "
                f"{', '.join(_tree.DTYPES)}."
            )
        leaves[i] = copy(source, dtype or leaf.dtype, memory_kind)
    return _tree.unflatten(flat, leaves)


def set_anchor(opt_state: Any, params: Any) -> Any:
    """Makes a copy of `params` the anchor θ0 of every MAPS, SPD and L2-SP state in `opt_state`.

    For code that calls `init` before the pretrained weights are loaded (big_vision), or to re-anchor between tasks.
    Which leaves are anchored, their dtype, and their memory stay; drift restarts from 0.

    Args:
      opt_state: any Optax state, however wrapped; its anchors may be detached.
      params: the new θ0, a tree that has every anchored leaf.

    Raises:
      ValueError: no such state inside, or trees or shapes that do not match.

    Examples:
      >>> import jax.numpy as jnp, maps_optax as mx
      >>> tx = mx.spd(1.0)
      >>> state = mx.set_anchor(tx.init({"w": jnp.zeros(2)}), {"w": jnp.ones(2)})
      >>> state.anchor["w"].tolist()
      [1.0, 1.0]
    """

    def renew(state: Any) -> Any:
        like = state.anchor.fingerprints if isinstance(state.anchor, DetachedAnchor) else state.anchor
        anchor = _like(like, params, "set_anchor")
        if isinstance(state, SPDState):
            carry, drift = jax.tree_util.tree_map(jnp.zeros_like, (state.carry, state.drift))  # nnx has them in boxes
            new = norms(_tree.flatten(anchor).leaves, jax.tree_util.tree_leaves(state.leaf)[0])
            norm = jax.tree_util.tree_map(lambda _: new, state.norm)
            return state._replace(anchor=anchor, norm=norm, carry=carry, drift=drift)
        return state._replace(anchor=anchor)

    return _tree.replace_states(opt_state, STATES, renew)


def detach_anchor(opt_state: Any) -> Any:
    """Takes θ0 out of `opt_state`, leaving a fingerprint of 12 bytes per leaf; for checkpoints.

    θ0 is the published checkpoint, so saving it again doubles what a run stores. The fingerprint is an exact hash of
    every bit and its place, whatever the sharding. Works under `jit` and `eval_shape` (the target to restore into).

    Raises:
      ValueError: no MAPS, SPD or L2-SP state inside.

    Examples:
      >>> import jax.numpy as jnp, maps_optax as mx
      >>> theta0 = {"w": jnp.arange(3.0)}
      >>> saved = mx.detach_anchor(mx.spd(1.0).init(theta0))
      >>> mx.attach_anchor(saved, theta0).anchor["w"].tolist()
      [0.0, 1.0, 2.0]
    """

    def detach(state: Any) -> Any:
        if isinstance(state.anchor, DetachedAnchor):
            return state
        return state._replace(anchor=DetachedAnchor(jax.tree_util.tree_map(fingerprint, state.anchor)))

    return _tree.replace_states(opt_state, STATES, detach)


def attach_anchor(opt_state: Any, pretrained: Any, *, memory_kind: Optional[str] = None) -> Any:
    """Puts θ0 back where `detach_anchor` took it out, after checking that it is the same θ0.

    Under `jit` the check is made when the program runs, and the error then is JAX's, with this one's text; `pretrained`
    must there have the dtype that the anchor had.

    Args:
      opt_state: a state whose anchors are detached.
      pretrained: the weights that training started from, with the sharding the anchor shall have.
      memory_kind: where to keep it, as `anchor_memory_kind` of `spd`.

    Raises:
      ValueError: a leaf's fingerprint differs, or is missing; nothing is attached then.
    """

    def attach(state: Any) -> Any:
        if not isinstance(state.anchor, DetachedAnchor):
            return state
        wanted = state.anchor.fingerprints
        anchor = _like(wanted, pretrained, "attach_anchor", memory_kind)
        flat = _tree.flatten(anchor)
        pairs = [fingerprint(leaf) for leaf in flat.leaves], _tree.flatten(wanted).leaves
        check = functools.partial(_compare, flat.paths)
        if any(isinstance(x, jax.core.Tracer) for x in jax.tree_util.tree_leaves(pairs)):
            jax.debug.callback(check, *pairs)
        else:
            check(*pairs)
        return state._replace(anchor=anchor)

    return _tree.replace_states(opt_state, STATES, attach)


def _compare(paths: list[_tree.Path], have: list[Any], wanted: list[Any]) -> None:
    differ = [p for p, a, b in zip(paths, have, wanted) if not np.array_equal(np.asarray(a), np.asarray(b))]
    if differ:
        raise ValueError(
            f"attach_anchor: these are not the weights that training started from: {len(differ)} of {len(paths)} "
            f"leaves differ, the first is {_tree.name(differ[0])!r}; give the pretrained weights of this run, or use "
            "set_anchor to re-anchor."
        )


def _like(like: Any, source: Any, who: str, memory_kind: Optional[str] = None) -> Any:
    """Copies of `source`'s leaves where `like` (an anchor or its fingerprints) has leaves."""
    flat = _tree.flatten(like)
    # Free leaves are masked in `like`, so `align` passes over those of `source`.
    sources = _tree.align(source, flat, f"{who}: the given tree")
    leaves = []
    for path, old, new in zip(flat.paths, flat.leaves, sources):
        kind = memory_kind
        if old.dtype == jnp.uint32:
            dtype = new.dtype if isinstance(old, jax.core.Tracer) else _tree.DTYPES[int(np.asarray(old)[2])]
        else:
            dtype = old.dtype
            if tuple(np.shape(new)) != tuple(old.shape):
                raise ValueError(
                    f"{who}: leaf {_tree.name(path)!r} has shape {np.shape(new)}, but its anchor has "
                    f"{tuple(old.shape)}; give weights of this model."
                )
            kind = _host_kind(old)
        leaves.append(copy(new, dtype, kind))
    return _tree.unflatten(flat, leaves)


def _host_kind(anchor: Any) -> Optional[str]:
    """Where an anchor is kept, if not on the device."""
    if isinstance(anchor, jax.core.Tracer):
        space = getattr(anchor.aval, "memory_space", None)
        return "pinned_host" if hasattr(jax, "memory") and space == jax.memory.Space.Host else None
    kind = getattr(getattr(anchor, "sharding", None), "memory_kind", None)
    return kind if kind == "pinned_host" else None


@jax.jit
def fingerprint(leaf: Any) -> jax.Array:
    """A uint32 (3,) hash of a leaf's bits, their places, and its dtype, the same under every sharding.

    Sums of mixed words modulo 2^32 are exact in any order, which floating-point checksums are not.
    """
    if str(leaf.dtype) not in _tree.DTYPES:
        raise ValueError(f"cannot fingerprint dtype {leaf.dtype}; anchors are one of {', '.join(_tree.DTYPES)}.")
    leaf = on_device(leaf)
    words = {8: jnp.uint32, 4: jnp.uint32, 2: jnp.uint16}[jnp.dtype(leaf.dtype).itemsize]
    bits = jax.lax.bitcast_convert_type(leaf, words).astype(jnp.uint32)  # float64 gains a last axis of 2
    place = jnp.zeros(bits.shape, jnp.uint32)  # the row-major index, counted from a hash of the shape
    for axis, extent in enumerate(bits.shape):
        place = place * jnp.uint32(extent) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    place = place + jnp.uint32(zlib.crc32(repr(leaf.shape).encode()))
    first = _mix(bits ^ _mix(place + jnp.uint32(1)))
    second = _mix(bits * jnp.uint32(0x9E3779B1) + place)
    code = jnp.uint32(_tree.DTYPES.index(str(leaf.dtype)))
    return jnp.stack([jnp.sum(first, dtype=jnp.uint32), jnp.sum(second, dtype=jnp.uint32), code])


def _mix(x: jax.Array) -> jax.Array:
    """A bijection of 32-bit words in which every input bit reaches every output bit (murmur3's finalizer)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
