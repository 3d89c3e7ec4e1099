"""big_vision: MAPS behind the optimizer that its factory makes, or within it under an ``optax_name``.

    from octo_integration.clients import big_vision as maps_bv

The trainers make `tx.init` see the random initialisation and load weights afterwards (`train.py`, `siglip.py`), so at
the end of the branch that loads ``config.model_init``, but not of the one that resumes, θ0 has to be set:

    train_state["opt"] = mx.set_anchor(train_state["opt"], train_state["params"])

and after both branches `check_anchor(train_state["opt"], train_state["params"])` makes sure of it.
`trainers/proj/paligemma/train.py` initialises the optimizer after loading and needs no such line. In all of them, name
in ``free`` what no checkpoint gives: new heads, a temperature, a tower from scratch. A pattern may match from any key
on, so anchor it: ``"head/"`` would free PaliGemma's ``img/head/`` too, its pretrained bridge; ``"^head/"`` does not.

`make` is exact under whatever the factory offers, for one changed line in the trainer. `maps_adam` lives in the config
alone, but has to be told the factory's learning rate, and there can be only one of it.
"""

import dataclasses
import importlib
import re
import types
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Union

import jax
import jax.numpy as jnp
import optax

import maps_optax as mx

# Shares of a planned step, and of a drift: what rounding explains.
_TOLERANCE, _ROUNDING = 0.05, 1e-5


def make(bv_optax: Any, config: Any, params: Any, *, sched_kw: Any) -> tuple[Any, Any]:
    """big_vision's `bv_optax.make` with MAPS behind it, in its place:

        tx, sched_fns = maps_bv.make(bv_optax, config, nn.unbox(params_shape), sched_kw=...)
        config.maps = dict(layers="paligemma", lambda_max=1.0, free=["^head/"])  # of a ViT, in the config file

    ``config.maps`` holds the arguments of `mx.maps` and ``free``, patterns of leaves without pretrained values, as of
    `mx.LayerStack`. ``layers`` is the name of a preset (``"paligemma"``, the default, takes a ViT too), a LayerStack
    or, as a config is written to JSON, its modules as pairs: ``[("image", [(r"img/block_(\\d+)/", "block")]), ...]``.
    Leaves whose ``config.schedule`` is None are free, and still count for the depth of the stack.

    Args:
      bv_optax: the module `big_vision.optax`.
      config, params, sched_kw: as of its `make`. Without ``config.maps`` nothing is added.

    Returns:
      The transformation, which takes θ0 from the parameters that its `init` sees, and the schedules.

    Raises:
      ValueError: as `mx.maps` and `mx.LayerStack` do; ``layers`` is none of the above.
    """
    tx, schedules = bv_optax.make(config, params, sched_kw=sched_kw)
    if config.get("maps") is None:
        return tx, schedules
    options = dict(config.maps)
    stack = _stack(options.pop("layers", "paligemma"), options.pop("free", ()))
    trained = jax.tree_util.tree_map(lambda _: True, params)
    trained = bv_optax.replace_frozen(config.get("schedule", {}), trained, False)
    frozen = [_name(path) for path, leaf in jax.tree_util.tree_flatten_with_path(trained)[0] if not leaf]
    if frozen:  # a LayerStack reads dots as slashes
        pattern = "^(?:" + "|".join(re.escape(name.replace(".", "/")) for name in frozen) + ")$"
        stack = dataclasses.replace(stack, free=(*stack.free, pattern))
    return mx.chain(tx, mx.maps(stack, **{"criterion": "gradient", **options})), schedules


class MapsAdamState(NamedTuple):
    """State of `maps_adam`.

    Attributes:
      adam: Adam's moments.
      maps: the `mx.SPDState`.
      step: ‖u‖, the length of the last step as planned.
      mismatch: the largest difference so far between where anchored leaves were planned to be and where the next update
        found them, as a share of that step. About 0 if all is well, 1 if the learning rate is off by 100 %, inf if
        the leaves were not at θ0 at the start.
    """

    adam: Any
    maps: Any
    step: Any
    mismatch: Any


def maps_adam(
    learning_rate: Any,
    lambda_max: Union[float, optax.Schedule],
    layers: Any = "paligemma",
    schedule: Any = "linear",
    *,
    free: Sequence[str] = (),
    weight_decay: float = 0.0,
    wd_mults: Sequence[tuple[str, float]] = ((".*/kernel$", 1.0),),
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    mu_dtype: Any = None,
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    r"""Adam with MAPS as one of big_vision's ``optax_name``; all of it is in the config, which imports this module:

        config.optax_name = "maps_optax.adam"
        config.optax = dict(learning_rate=dict(base=config.lr, total_steps=config.total_steps, **config.schedule),
                            weight_decay=config.wd / config.lr, lambda_max=1.0, free=["^head/"])

    The factory multiplies what it gets by learning rate and schedule, adds weight decay, and turns the sign. MAPS
    projects the real step, so here that step is foreseen, projected, and divided by what the factory will multiply by:

    .. math:: u = -\eta(t)(a + w \theta), \qquad \text{returned: } a - (u' - u) / \eta(t)

    with a Adam's direction and u′ what MAPS makes of u. An η that is not the factory's would silently give another
    method: `check` finds that out, and also a θ0 that was never set. With ``lr_mults``, a schedule per pattern, another
    optimizer, or a wholly frozen tower whose blocks are stacked by a scan, use `make`.

    Args:
      learning_rate: η, ``config.lr`` times the schedule: a number, an optax schedule or the arguments of big_vision's
        `create_learning_rate_schedule`. Where it is 0, Adam's direction is returned.
      lambda_max, schedule, **options: as of `mx.maps`.
      layers, free: as in `make`.
      weight_decay: w as Adam counts it, ``config.wd / config.lr``.
      wd_mults: the factory's, with its default.
      b1, b2, eps, mu_dtype: as of `optax.scale_by_adam`.

    Returns:
      A transformation for three-argument `update`, with state `MapsAdamState`.

    Raises:
      ValueError: as `make`; a learning rate that is not positive.
    """
    if hasattr(learning_rate, "keys"):
        learning_rate = importlib.import_module("big_vision.utils").create_learning_rate_schedule(**learning_rate)
    elif not callable(learning_rate) and not learning_rate > 0:
        raise ValueError(f"maps_adam: learning_rate is {learning_rate}; it must be positive.")
    rate: Callable[[Any], Any] = learning_rate if callable(learning_rate) else lambda _: learning_rate
    adam = optax.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype)
    maps = mx.maps(_stack(layers, free), lambda_max, schedule, **{"criterion": "gradient", **options})
    tree_map = jax.tree_util.tree_map

    def decay(path: Any, leaf: Any) -> float:
        return weight_decay * next((m for pattern, m in wd_mults if re.fullmatch(pattern, _name(path))), 0.0)

    def init(params: Any) -> MapsAdamState:
        return MapsAdamState(adam.init(params), maps.init(params), jnp.zeros(()), jnp.zeros(()))

    def update(updates: Any, state: MapsAdamState, params: Any = None, **extra_args: Any) -> tuple[Any, MapsAdamState]:
        del extra_args
        nothing = tree_map(jnp.zeros_like, updates)
        _, here = maps.update(nothing, state.maps, params, grad=nothing)
        gap = jnp.maximum(jnp.abs(here.drift - state.maps.drift) - _ROUNDING * here.drift, 0)
        gap = jnp.sqrt(jnp.sum(gap * gap))
        unit = jnp.where(state.step > 0, state.step, jnp.where(state.maps.count == 0, 0, gap))
        mismatch = jnp.where(gap > 0, gap / unit, 0)

        direction, adam_state = adam.update(updates, state.adam, params)
        eta = jnp.asarray(rate(state.maps.count), state.step.dtype)
        decays = jax.tree_util.tree_map_with_path(decay, params)
        step = tree_map(lambda a, p, w: -eta * (a + w * p if w else a), direction, params, decays)
        held, maps_state = maps.update(step, state.maps, params, grad=updates)
        # Where nothing is projected the difference is 0, so Adam's direction passes to the bit.
        per_rate = 1 / jnp.where(eta == 0, 1, eta)
        returned = tree_map(lambda a, u, v: (a - (v - u) * per_rate).astype(a.dtype), direction, step, held)
        length = jnp.sqrt(sum(jnp.sum(v.astype(eta.dtype) ** 2) for v in jax.tree_util.tree_leaves(held)))
        return returned, MapsAdamState(adam_state, maps_state, length, jnp.maximum(mismatch, state.mismatch))

    return optax.GradientTransformationExtraArgs(init, update)


def check(opt_state: Any) -> None:
    """Raises if the weights did not move as `maps_adam` foresaw; call it outside jit, once after some steps.

    Raises:
      ValueError: the learning rate or weight decay is not the factory's, θ0 was not set, or there is no `maps_adam`.
    """
    leaves = jax.tree_util.tree_leaves(opt_state, is_leaf=lambda node: isinstance(node, MapsAdamState))
    found = [float(state.mismatch) for state in leaves if isinstance(state, MapsAdamState)]
    if not found:
        raise ValueError("check: this optimizer state holds no MapsAdamState; is optax_name maps_optax.adam?")
    if max(found) == float("inf"):
        raise ValueError(
            "check: training did not start from θ0; after loading weights call mx.set_anchor(opt_state, params)."
        )
    if max(found) > _TOLERANCE:
        raise ValueError(
            f"check: the weights moved {max(found):.0%} of a step away from where maps_adam planned; give it the "
            "factory's learning_rate and weight_decay, or use make."
        )


def check_anchor(opt_state: Any, params: Any) -> None:
    """Raises unless MAPS will hold the weights at θ0; call it outside jit, after loading or resuming, before any step.

    Both mistakes are silent otherwise: a θ0 that is the random initialisation spoils the loaded weights, and one that
    every resumption sets anew holds nothing in the end.

    Args:
      opt_state: of `make` or with `maps_adam` in it.
      params: what the next step starts from.

    Raises:
      ValueError: training starts elsewhere than at θ0, naming the first leaf; θ0 was set anew although steps had been
        made (steps that all had a learning rate of 0 look the same); there is no MAPS in the state.
    """
    leaves = jax.tree_util.tree_leaves(opt_state, is_leaf=lambda node: isinstance(node, mx.SPDState))
    states = [state for state in leaves if isinstance(state, mx.SPDState)]
    if not states:
        raise ValueError("check_anchor: this optimizer state holds no MAPS; is config.maps or the optax_name set?")
    weights = {_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]}
    for state in states:
        if int(state.count) > 0:
            if jax.tree_util.tree_leaves(state.anchor) and not bool(jnp.any(state.drift)):
                raise ValueError(
                    f"check_anchor: θ0 was set anew after {int(state.count)} steps; call mx.set_anchor only where "
                    "config.model_init is loaded, not where a run resumes."
                )
            continue
        for path, theta0 in jax.tree_util.tree_flatten_with_path(state.anchor)[0]:
            weight = jnp.asarray(weights[_name(path)])
            if not bool(jnp.array_equal(weight.astype(theta0.dtype), jax.device_put(theta0, weight.sharding))):
                raise ValueError(
                    f"check_anchor: training does not start from θ0: leaf {_name(path)!r} differs; after loading "
                    "weights call mx.set_anchor(opt_state, params)."
                )


def _stack(layers: Any, free: Sequence[str]) -> mx.LayerStack:
    if isinstance(layers, str):
        if layers not in mx.presets.__all__:
            raise ValueError(f"layers is {layers!r}; the presets are {', '.join(mx.presets.__all__)}.")
        layers = getattr(mx.presets, layers)()
    elif not isinstance(layers, mx.LayerStack):
        if hasattr(layers, "keys"):
            raise ValueError("layers is a mapping, whose order a config does not keep; give pairs (module, rules).")
        layers = mx.LayerStack({module: dict(rules) for module, rules in layers})
    return dataclasses.replace(layers, free=(*layers.free, *free))


def _name(path: Any) -> str:
    return "/".join(str(getattr(key, "key", key)) for key in path)


# A name of our own: importing big_vision.optax replaces `optax.big_vision`, and with it what was put there before.
optax.maps_optax = types.SimpleNamespace(adam=maps_adam)
