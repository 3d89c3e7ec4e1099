"""What a person reads: the λ table before a run, the drift of each layer during it."""

import math
from typing import Any, NamedTuple, Optional, Union

import jax
import jax.numpy as jnp
import numpy as np
import optax

from maps_optax import _anchor, _layers, _schedules, _strength, _sums, _tree


class Slice(NamedTuple):
    """One tensor of the stack: a leaf, or a slice of a leaf that stacks layers.

    Attributes:
      path: the leaf's path, 'a/b/c'.
      row: which slice of axis 0, or None for a whole leaf.
      position: k ≥ 1, or None where the tensor has no pretrained value.
      module: the module's name, 'free' where position is None.
      block: the block's number within the module, '' where the module is one layer.
      ratio: λ/λ_max.
      size: number of parameters.
    """

    path: str
    row: Optional[int]
    position: Optional[int]
    module: str
    block: str
    ratio: float
    size: int


def slices(layers: _layers.Layers, params: Any, schedule: _schedules.Schedule = "linear") -> list[Slice]:
    """Every tensor of `params` with its place in the stack, in flattening order; for tables, plots and logs.

    Args:
      layers: as in `maps`.
      params: parameters or `jax.ShapeDtypeStruct`s.
      schedule: as in `maps`.

    Raises:
      ValueError: as `strengths` does.

    Examples:
      >>> import numpy as np, maps_optax as mx
      >>> [(s.row, s.position, s.ratio) for s in mx.slices(np.array([1, 2]), np.zeros((2, 3)))]
      [(0, 1, 1.0), (1, 2, 0.0)]
    """
    flat, layout = _layers.resolve(layers, params)
    rows = []
    for path, leaf, position in zip(flat.paths, flat.leaves, layout.positions):
        whole = math.prod(leaf.shape)
        stacked = isinstance(position, np.ndarray)
        for i, k in enumerate(position if stacked else [position]):  # type: ignore[arg-type]
            module, block = ("free", "") if k is None else layout.names[int(k)]
            rows.append(
                Slice(
                    path="/".join(path),
                    row=i if stacked else None,
                    position=None if k is None else int(k),
                    module=module,
                    block=block,
                    ratio=0.0 if k is None else _schedules.ratio(schedule, int(k), layout.size),
                    size=whole // leaf.shape[0] if stacked else whole,
                )
            )
    return rows


def describe(
    layers: _layers.Layers,
    params: Any,
    lambda_max: Union[float, optax.Schedule],
    schedule: _schedules.Schedule = "linear",
) -> str:
    """The table a person reads before a run: module, layer, tensors, parameters and λ, and what θ0 will cost.

    Of a stack that `infer_layers` proposed it also says which places are guesses, and why.

    Args:
      layers: as in `maps`.
      params: parameters or `jax.ShapeDtypeStruct`s.
      lambda_max: as in `maps`; of an optax schedule, its value at step 0 is shown.
      schedule: as in `maps`.

    Raises:
      ValueError: as `strengths` does.

    Examples:
      >>> import maps_optax as mx, numpy as np
      >>> params = {"vision": np.zeros((2, 500)), "bridge": np.zeros(70), "head": np.zeros(9)}
      >>> print(mx.describe({"vision": np.array([1, 2]), "bridge": 3, "head": None}, params, lambda_max=2.0))
      module  layer  tensors  parameters       λ
      layer       1        1         500  2.0000
      layer       2        1         500  1.0000
      layer       3        1          70  0.0000
      free                 1           9  0.0000
      anchored: 1000 parameters in 1 of 3 leaves, 8.0 kB of θ0; free: 79 parameters
    """
    strengths = _strength.strengths(layers, params, lambda_max, schedule)  # validates λ_max
    top = float(lambda_max(0) if callable(lambda_max) else lambda_max)
    table: dict[tuple[float, str, str], list[Any]] = {}
    for s in slices(layers, params, schedule):
        key = (math.inf if s.position is None else s.position, s.module, s.block)
        row = table.setdefault(key, [0, 0, top * s.ratio])
        row[0] += 1
        row[1] += s.size
    rows = [("module", "layer", "tensors", "parameters", "λ")]
    rows += [(m, b, str(n), str(size), f"{lam:.4f}") for (_, m, b), (n, size, lam) in sorted(table.items())]
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:]))]) for row in rows
    ]

    flat = _tree.flatten(params)
    kept = [leaf for leaf, lam in zip(flat.leaves, _tree.align(strengths, flat, "strengths")) if np.any(lam)]
    numbers = [math.prod(leaf.shape) for leaf in kept]
    bytes_ = sum(n * np.dtype(leaf.dtype).itemsize for n, leaf in zip(numbers, kept))
    total = sum(math.prod(leaf.shape) for leaf in flat.leaves)
    lines.append(
        f"anchored: {sum(numbers)} parameters in {len(kept)} of {len(flat.leaves)} leaves, {_bytes(bytes_)} of θ0; "
        f"free: {total - sum(numbers)} parameters"
    )
    guesses = layers.guesses if isinstance(layers, _layers.LayerStack) else {}
    sizes = {"/".join(path): math.prod(leaf.shape) for path, leaf in zip(flat.paths, flat.leaves)}
    for why in dict.fromkeys(guesses.values()):
        paths = [(path,) for path, reason in guesses.items() if reason == why]
        share = sum(sizes.get(path, 0) for (path,) in paths) / max(total, 1)
        lines.append(f"guessed: {_tree._some(paths)} ({share:.0%} of the parameters): {why}")
    return "\n".join(lines)


def metrics(opt_state: Any, layers: Optional[_layers.LayerStack] = None, *, strength: bool = False) -> dict[str, Any]:
    """What MAPS did in the last step, as a flat dict of scalars; works under `jit`.

    * ``drift/<layer>``: ‖θ − θ0‖ after the step, in the parameters' own unit;
    * ``triggered/<layer>``: the share of the layer's tensors with c < 0;
    * ``pull/<layer>``: the mean of λ·r over the layer's tensors, 0 where not triggered;
    * ``pulled/<layer>``: the share with a pull among the triggered, 0 where there is none. Where it stays 0 though
      there are triggers, steps never go out against the gradient: there is no momentum, and MAPS does nothing;
    * ``mismatch/<layer>``: by how much of itself ‖θ − θ0‖ was, before the step, another than the step before had left
      it, at most over the layer's tensors; 0 within rounding. Where it is not 0 something changes the step after MAPS
      has judged it (a learning rate, weight decay, freezing, `apply_every`): put MAPS last;
    * ``drift``, ``triggered``, ``pull``, ``pulled``, ``mismatch``: the same over everything anchored.

    ``strength=True`` adds ``strength/<layer>``, the mean λ of the layer's tensors: what `adapt` has made of it.

    Of a state that `jax.vmap` made, each is an array over what it was mapped over.

    Args:
      opt_state: any Optax state that holds states of `spd`, `maps` or `lora_spd`, however wrapped.
      layers: the LayerStack that `maps` was given, to name and gather layers ``"dinov2/3"``. Without it each anchored
        tensor is a layer of its own, named by its path, ``"path[i]"`` for slice i of a leaf that stacks layers. What
        has no place in the stack, as adapters in that of most presets, is named by its path all the same.
      strength: whether to show λ.

    Raises:
      ValueError: no such state inside.

    Examples:
      >>> import jax.numpy as jnp, maps_optax as mx, optax
      >>> state = mx.chain(optax.adam(1e-3), mx.spd(1.0)).init({"w": jnp.ones(2)})
      >>> sorted(mx.metrics(state))
      ['drift', 'drift/w', 'mismatch', 'mismatch/w', 'pull', 'pull/w', 'pulled', 'pulled/w', 'triggered', 'triggered/w']
    """
    found: list[_anchor.SPDState] = []

    def collect(state: _anchor.SPDState) -> _anchor.SPDState:
        vectors = {field: _unboxed(getattr(state, field)) for field in state._fields if field != "anchor"}
        found.append(state._replace(**vectors))
        return state

    _tree.replace_states(opt_state, (_anchor.SPDState,), collect)
    fields = ("drift", "triggered", "pull", "mismatch", *(("strength",) if strength else ()))
    groups: dict[str, list[tuple[Any, int]]] = {}
    for state in found:
        for i, name in enumerate(_names(state, layers)):
            groups.setdefault(name, []).append((state, i))
    out: dict[str, Any] = {}
    for name, members in groups.items():
        parts = {field: jnp.stack([getattr(s, field)[..., i] for s, i in members], axis=-1) for field in fields}
        out |= {f"{key}/{name}": value for key, value in _summary(parts, len(members)).items()}
    everything = {field: jnp.concatenate([getattr(s, field) for s in found], axis=-1) for field in fields[:4]}
    return out | _summary(everything, max(sum(map(len, groups.values())), 1))


def _summary(parts: dict[str, jax.Array], count: int) -> dict[str, jax.Array]:
    """The metrics of `count` tensors from their entries in a state's vectors, (..., n); further entries are 0."""
    triggered = jnp.sum(parts["triggered"], axis=-1)
    out = {
        "drift": _sums.root(jnp.sum(parts["drift"] ** 2, axis=-1)),
        "triggered": triggered / count,
        "pull": jnp.sum(parts["pull"], axis=-1) / count,
        "pulled": jnp.sum(parts["pull"] > 0, axis=-1) / jnp.maximum(triggered, 1),
        "mismatch": jnp.max(parts["mismatch"], axis=-1),
    }
    return out | ({"strength": jnp.sum(parts["strength"], axis=-1) / count} if "strength" in parts else {})


def _names(state: _anchor.SPDState, layers: Optional[_layers.LayerStack]) -> list[str]:
    """A name for each entry of the state's packed vectors."""
    anchor = state.anchor
    if isinstance(anchor, _anchor.DetachedAnchor):
        raise ValueError("metrics: the anchor is detached; call mx.attach_anchor(opt_state, pretrained) first.")
    held = jax.tree_util.tree_map(_shape, anchor, is_leaf=lambda x: isinstance(x, _anchor.Adapter))
    flat = _tree.flatten(held)
    if layers is not None and flat.paths:
        layout = layers.resolve(flat)
        if all(p is None for p in layout.positions):  # not what `maps` holds: the factors of adapters
            return _by_path(state, flat)
        names = [
            "/".join(filter(None, layout.names[int(k)]))
            for p in layout.positions
            for k in np.atleast_1d(p)  # type: ignore[arg-type]
        ]
        size = state.drift.shape[-1]
        if len(names) != size:
            raise ValueError(f"metrics: layers gives {len(names)} layers, the state has {size}; give maps' own.")
        return names
    return _by_path(state, flat)


def _by_path(state: _anchor.SPDState, flat: _tree.Flat) -> list[str]:
    size = state.drift.shape[-1]
    if len(flat.paths) == size:
        counts = [1] * size
    elif not jax.tree_util.tree_leaves(state.anchor):  # nothing, or adapters held by their products
        counts = [math.prod(leaf.shape) for leaf in flat.leaves]
    elif isinstance(state.leaf, jax.core.Tracer):
        raise ValueError(
            "metrics: under jit the names of stacked layers are not known; pass layers=, or call it outside jit."
        )
    else:
        leaves = np.asarray(state.leaf).reshape(-1, size)[0]  # a vmapped state repeats it
        counts = np.bincount(leaves).tolist()
    return [
        _tree.name(path) if count == 1 else f"{_tree.name(path)}[{i}]"
        for path, count in zip(flat.paths, counts)
        for i in range(count)
    ]


def _shape(node: Any) -> Any:
    """A leaf of θ0, or what stands for it where an adapter's product is held."""
    if not isinstance(node, _anchor.Adapter):
        return node
    return jax.ShapeDtypeStruct((len(node.layers),) if node.layers else (), jnp.float32)


def _unboxed(x: Any) -> Any:
    """The array of a field, which `nnx.Optimizer` keeps in a variable."""
    return jax.tree_util.tree_leaves(x)[0]


def _bytes(n: float) -> str:
    power = min(int(math.log(max(n, 1), 1000)), 4)
    return f"{n / 1000**power:.{min(power, 1)}f} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
