"""MAPS: Selective Projection Decay with a strength that falls along the stack."""

import functools
from typing import Any, Optional, Union

import jax
import optax

from maps_optax import _adapt, _inject, _layers, _schedules, _spd, _strength, _tree


@_inject.takes_functions("layers", "schedule", "adapt")
def maps(
    layers: _layers.Layers,
    lambda_max: Union[float, optax.Schedule],
    schedule: _schedules.Schedule = "linear",
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
    r"""Module-Wise Proximity Scheduling: `spd` whose λ falls along the pretrained stack; last in the chain, as `spd`.

    .. math:: \lambda_k = \lambda_{max} \left(1 - \frac{k - 1}{|L| - 1}\right), \quad k = 1, \dots, |L|

    and 0 for what is trained from scratch (arXiv 2511.19878, section 3; the linear schedule).

    Args:
      layers: a `LayerStack` (see `maps_optax.presets`), a callable `params -> positions`, or a pytree of positions: an
        int k ≥ 1, a 1-D int array for a leaf whose axis 0 stacks layers, or None for a leaf with no pretrained value.
      lambda_max: λ of the first layer, or an optax schedule of the step count, starting at 0.
      schedule: ``"linear"``, ``"cosine"``, ``"constant"``, ``"exponential"``, ``"step"``, or a callable
        `(k, size) -> λ_k/λ_max`. A leaf whose ratio is 0 is free and keeps no anchor.
      anchor, anchor_dtype, anchor_memory_kind, norm, max_pull, b1, criterion, axis_name: as in `spd` (by name rather
        than as ``**options``, which `optax.inject_hyperparams` cannot bind).
      adapt: as in `spd`: λ starts from the schedule, and a leaf or slice whose ratio is 0 stays free. Not together with
        an optax schedule for `lambda_max`.

    Returns:
      A transformation with state `SPDState`, to be placed last: after the optimizer that makes the step, the learning
      rate, weight decay and freezing.

    Raises:
      ValueError: as `spd` and `strengths` do.

    Examples:
      >>> import jax.numpy as jnp, maps_optax as mx, optax
      >>> params = {"vision": jnp.ones((3, 4)), "bridge": jnp.ones(4), "head": jnp.ones(4)}
      >>> positions = {"vision": jnp.array([1, 2, 3]), "bridge": 4, "head": None}
      >>> tx = mx.chain(optax.adam(1e-3), mx.maps(positions, lambda_max=3.0))
      >>> tx.init(params)[1].strength.tolist()  # the bridge is last, hence free
      [3.0, 2.0, 1.0]
    """
    layers, schedule = _inject.unwrap(layers), _inject.unwrap(schedule)
    if not (callable(lambda_max) or isinstance(lambda_max, jax.core.Tracer)):
        _strength.check_lambda_max(float(lambda_max))

    if adapt is not None and callable(lambda_max):
        raise ValueError("mx.maps: lambda_max is a schedule and adapt moves λ too; give one of them.")
    if adapt is not None and isinstance(lambda_max, (int, float)) and lambda_max == 0:
        raise ValueError(f"mx.maps: {_spd.NOTHING_TO_ADAPT}")

    def ratios(params: Any) -> Any:
        flat, layout = _layers.resolve(layers, params)
        factor = 1.0 if callable(lambda_max) or isinstance(lambda_max, jax.Array) else float(lambda_max)
        return _tree.unflatten(flat, [factor * _strength.ratio(p, layout.size, schedule) for p in layout.positions])

    scale = None
    if callable(lambda_max):
        scale = lambda_max
    elif isinstance(lambda_max, jax.Array):  # `optax.inject_hyperparams` gives it anew each step
        scale = functools.partial(_constant, lambda_max)
    return _spd.selective_projection(
        ratios,
        scale,
        "mx.maps",
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


def _constant(value: jax.Array, count: Any) -> jax.Array:
    del count
    return value
