"""From what a user may give as λ to one validated strength per leaf."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Union

import jax
import jax.numpy as jnp
import numpy as np
import optax

from maps_optax import _layers, _schedules, _tree

Strength = Union[float, jax.Array, Any, Callable[[Any], Any]]


class Anchored(NamedTuple):
    """One anchored leaf of a tree.

    Attributes:
      leaf: its place among the leaves of the flattened tree.
      layers: how many layers axis 0 stacks, or None where the leaf is one tensor.
      strength: λ, shape () or (layers,); numpy where it is known before the step runs, else a JAX array.
    """

    leaf: int
    layers: Union[int, None]
    strength: Any


def plan(strength: Strength, flat: _tree.Flat, params: Any, who: str) -> list[Anchored]:
    """The anchored leaves under `strength` (a number, a pytree, or a callable of params); the others are free.

    A λ known in Python to be 0 frees its leaf. A JAX scalar given for all leaves is a value that may change from
    step to step (`optax.inject_hyperparams`), so it frees none.

    Raises:
      ValueError: λ negative, non-finite, of the wrong length or rank; tree mismatch; an anchored leaf that is no
        array of real floating point.
    """
    if not flat.paths:  # `optax.tree_utils.tree_map_params` calls init with an empty placeholder
        return []
    if callable(strength):
        strength = strength(params)
    if is_number(strength):
        values = [strength if isinstance(strength, jax.Array) else np.asarray(strength, np.float64)] * len(flat.paths)
    else:
        values = [_concrete(v) for v in _tree.align(strength, flat, f"{who}: strength")]
    anchored = []
    for i, (value, path, leaf) in enumerate(zip(values, flat.paths, flat.leaves)):
        if value is None or _tree.is_masked(value):
            continue
        _check(value, path, leaf, who)
        if isinstance(value, np.ndarray) and not value.any():
            continue
        if not hasattr(leaf, "dtype"):
            raise ValueError(
                f"{who}: leaf {_tree.name(path)!r} is a {type(leaf).__name__}, not an array; make it one with "
                "jnp.asarray, or give it λ = None."
            )
        if str(leaf.dtype) not in _tree.DTYPES:
            raise ValueError(
                f"{who}: leaf {_tree.name(path)!r} has dtype {leaf.dtype}; only leaves of {', '.join(_tree.DTYPES)} "
                "can be anchored, so give this one λ = None."
            )
        anchored.append(Anchored(i, value.shape[0] if value.ndim else None, value))
    return anchored


def strengths(
    layers: _layers.Layers,
    params: Any,
    lambda_max: Union[float, optax.Schedule],
    schedule: _schedules.Schedule = "linear",
) -> Any:
    r"""The strength λ of every leaf, without an optimizer.

    .. math:: \lambda_k = \lambda_{max} \cdot s(k, |L|), \qquad s_{linear}(k, |L|) = 1 - \frac{k - 1}{|L| - 1}

    (MAPS, arXiv 2511.19878, section 3). Nothing is computed on devices: shapes are enough.

    Args:
      layers: a `LayerStack`, a callable `params -> positions`, or a pytree of positions (an int k ≥ 1, a 1-D int array
        for a leaf whose axis 0 stacks layers, None for a leaf without pretrained value).
      params: the parameters, or `jax.ShapeDtypeStruct`s in their place.
      lambda_max: λ of the first layer, finite and ≥ 0; of an optax schedule, its value at step 0 is taken.
      schedule: ``"linear"``, ``"cosine"``, ``"constant"``, ``"exponential"``, ``"step"``, or a callable
        `(k, size) -> λ_k/λ_max`, which ``"module:function"`` names too: it is then imported.

    Returns:
      A tree like params of floats, and of float64 arrays (n,) where a leaf stacks n layers; 0.0 for free leaves.

    Raises:
      ValueError: a leaf without a rule, a rule without a leaf, an unknown schedule, a bad λ_max or position.

    Examples:
      >>> import maps_optax as mx, numpy as np
      >>> params = {"vision": np.zeros((3, 8)), "bridge": np.zeros(8), "head": np.zeros(8)}
      >>> mx.strengths({"vision": np.array([1, 2, 3]), "bridge": 4, "head": None}, params, lambda_max=3.0)
      {'bridge': 0.0, 'head': 0.0, 'vision': array([3., 2., 1.])}
    """
    value = float(lambda_max(0) if callable(lambda_max) else lambda_max)
    check_lambda_max(value)
    flat, layout = _layers.resolve(layers, params)
    leaves: list[Any] = []
    for position in layout.positions:
        ratios = ratio(position, layout.size, schedule)
        leaves.append(float(value * ratios) if ratios.ndim == 0 else value * ratios)
    return _tree.unflatten(flat, leaves)


def ratio(position: _layers.Position, size: int, schedule: _schedules.Schedule) -> np.ndarray:
    """λ/λ_max at a position: a float64 array of shape () or (n,), 0 where the position is None."""
    if position is None:
        return np.zeros(())
    if isinstance(position, np.ndarray):
        return np.asarray([_schedules.ratio(schedule, int(k), size) for k in position])
    return np.asarray(_schedules.ratio(schedule, position, size))


def check_lambda_max(value: float) -> None:
    """Refuses a negative or non-finite λ_max."""
    if not (math.isfinite(value) and value >= 0.0):
        raise ValueError(f"lambda_max is {value}; it must be finite and not negative.")


def now(a: Anchored) -> Any:
    """λ of a leaf's layers in this step, (layers,): a numpy array where it is known already."""
    dtype = jnp.asarray(0.0).dtype
    if isinstance(a.strength, np.ndarray):
        return np.atleast_1d(a.strength).astype(dtype)
    return bounded(jnp.atleast_1d(jnp.asarray(a.strength, dtype)))


def bounded(x: Any, otherwise: float = 0.0, below: float = np.inf) -> Any:
    """A number that only exists when the step runs, or `otherwise` where it is not in [0, below) or is NaN."""
    x = jnp.asarray(x)
    return jnp.where((x >= 0) & (x < below), x, otherwise)


def is_number(x: Any) -> bool:
    """Whether `x` is one number, Python's, numpy's or a JAX scalar."""
    return isinstance(x, (int, float, np.number)) or (isinstance(x, (np.ndarray, jax.Array)) and x.ndim == 0)


def _concrete(x: Any) -> Any:
    """A leaf of a strength tree as a numpy array, unless it is traced (or says that there is none)."""
    if x is None or _tree.is_masked(x) or isinstance(x, jax.core.Tracer):
        return x
    return np.asarray(x, np.float64)


def _check(value: Any, path: _tree.Path, leaf: Any, who: str) -> None:
    shape = tuple(np.shape(leaf))
    if value.ndim > 1 or (value.ndim == 1 and value.shape != shape[:1]):
        raise ValueError(
            f"{who}: λ of leaf {_tree.name(path)!r} has shape {value.shape}, but the leaf has shape {shape}; give a "
            "number, or a vector with one λ per slice of axis 0."
        )
    if isinstance(value, jax.core.Tracer):
        return
    known = np.asarray(value)
    if not (np.isfinite(known).all() and (known >= 0).all()):
        raise ValueError(f"{who}: λ of leaf {_tree.name(path)!r} is {value}; λ must be finite and not negative.")
