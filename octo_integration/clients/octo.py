"""Octo: MAPS within the optimizer that Octo's `create_optimizer` makes. Imports no Octo."""

import dataclasses
import hashlib
import logging
import re
from collections import Counter
from collections.abc import Callable
from typing import Any, Optional, Union

import jax
import numpy as np
import optax

import maps_optax as mx


def create_optimizer(
    train_utils: Any,
    params: Any,
    *,
    lambda_max: Union[float, optax.Schedule],
    schedule: Any = "linear",
    layers: Any = None,
    initial: Any = None,
    max_pull: Optional[float] = None,
    anchor_dtype: Any = None,
    **kwargs: Any,
) -> tuple[optax.GradientTransformation, Callable[[Any], Any], Callable[[Any], Any]]:
    """Octo's `create_optimizer`, with MAPS behind its AdamW.

    MAPS stands where the gradient of the Adam step is at hand: inside Octo's freeze, clipping and gradient
    accumulation. Frozen leaves keep no θ0 and stay as they are. θ0 is what `tx.init`, called by `TrainState.create`,
    sees: the weights after Octo's loaders ran.

    Args:
      train_utils: Octo's module `octo.utils.train_utils`.
      params: the parameters, as for Octo's function.
      lambda_max, schedule, max_pull, anchor_dtype: as in `mx.maps`.
      layers: as in `mx.maps`; the default is `mx.presets.octo()`.
      initial: the parameters before pretrained weights were loaded. A leaf that `tx.init` finds bit-equal to its
        initial value has no pretrained one, so it is free; the other leaves keep their λ. Those that `layers` would
        hold are counted in the log, by module. Default: `layers` alone says what is free. Only hashes of it are kept,
        so a loader may change it in place.
      **kwargs: of Octo's function: ``config.optimizer.to_dict()``.

    Returns:
      The optimizer, the learning rate as a function of the step, and the norm of the trainable parameters as a function
      of params, as from Octo's function.

    Raises:
      ValueError: `train_utils` is another module; `initial` is another tree than params, holds no values or comes with
        `layers` that are no `LayerStack`. From `tx.init`: no trainable leaf differs from `initial`, or there are no
        values to compare with it, as under jit. Else as `mx.maps`.
    """
    for name in ("create_optimizer", "freeze_weights"):
        if not hasattr(train_utils, name):
            raise ValueError(f"create_optimizer: train_utils has no {name}; give Octo's module octo.utils.train_utils.")
    layers = mx.presets.octo() if layers is None else layers

    def maps(layers: Any) -> optax.GradientTransformationExtraArgs:
        return mx.maps(layers, lambda_max, schedule, max_pull=max_pull, anchor_dtype=anchor_dtype, criterion="gradient")

    held = maps(layers) if initial is None else _free_where_unloaded(maps, layers, initial, params)
    _, lr_callable, param_norm_callable = train_utils.create_optimizer(params, **kwargs)
    clip_gradient = kwargs.pop("clip_gradient", None)
    frozen_keys = kwargs.pop("frozen_keys", None)
    grad_accumulation_steps = kwargs.pop("grad_accumulation_steps", None)
    adamw, _, _ = train_utils.create_optimizer(params, **kwargs)

    # Octo's wrappers, in its order, around AdamW and MAPS.
    tx: optax.GradientTransformation = mx.chain(adamw, held)
    if grad_accumulation_steps:
        tx = optax.MultiSteps(tx, grad_accumulation_steps).gradient_transformation()
    if clip_gradient is not None:
        tx = optax.chain(optax.clip_by_global_norm(clip_gradient), tx)
    if frozen_keys:
        tx = train_utils.freeze_weights(tx, params, frozen_keys)
    return tx, lr_callable, param_norm_callable


def _free_where_unloaded(
    maps: Callable[[Any], optax.GradientTransformationExtraArgs], layers: Any, initial: Any, params: Any
) -> optax.GradientTransformationExtraArgs:
    """`maps(layers)` with the leaves free that `init` finds as they are in `initial`."""
    if not isinstance(layers, mx.LayerStack):
        raise ValueError("create_optimizer: initial needs layers to be an mx.LayerStack, whose free= it extends.")
    maps(layers)  # so that a bad option is refused here, not in tx.init
    before = {path: _digest(leaf, path) for path, leaf in _leaves(initial).items()}
    strangers = sorted(before.keys() ^ _leaves(params).keys())
    if strangers:
        raise ValueError(
            f"create_optimizer: params or initial lacks leaf {strangers[0]!r}; give two trees of one model."
        )

    def freeing(paths: list[str]) -> optax.GradientTransformationExtraArgs:
        # A free leaf still counts for the depth of the stack. LayerStack reads dots as slashes.
        pattern = "^(?:" + "|".join(re.escape(path.replace(".", "/")) for path in paths) + ")$"
        return maps(dataclasses.replace(layers, free=(*layers.free, pattern)) if paths else layers)

    def init(params: Any) -> Any:
        leaves = _leaves(params)
        unloaded = [path for path, leaf in leaves.items() if _digest(leaf, path) == before.get(path)]
        _log(layers, params, set(unloaded))
        if leaves and len(unloaded) == len(leaves):
            raise ValueError(
                "create_optimizer: no trainable leaf differs from initial, so MAPS holds nothing; load pretrained "
                "weights into trainable leaves before TrainState.create, and give as initial the params from before."
            )
        return freeing(unloaded).init(params)

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        # Read off the state, because a restored one need not come from this `init`.
        free = sorted(_leaves(updates).keys() - _leaves(state.anchor).keys())
        return freeing(free).update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(init, update)


def _log(layers: mx.LayerStack, params: Any, unloaded: set[str]) -> None:
    """Says of each module how many of its leaves equal `initial`: all of them, if its loader did not run."""
    module = {s.path: s.module for s in mx.slices(layers, params) if s.position is not None}
    held, freed = Counter(module.values()), Counter(module[path] for path in module.keys() & unloaded)
    if freed:
        parts = ", ".join(f"{freed[name]} of {held[name]} in {name}" for name in layers.modules if name in freed)
        logging.getLogger(__name__).warning("leaves without λ, because they equal initial: %s", parts)


def _leaves(tree: Any) -> dict[str, Any]:
    """The leaves by path; there is none where Optax's wrappers mask one out."""
    pairs = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {"/".join(str(getattr(key, "key", key)) for key in keys): leaf for keys, leaf in pairs}


def _digest(leaf: Any, path: str) -> bytes:
    if isinstance(leaf, jax.core.Tracer) or not isinstance(leaf, (jax.Array, np.ndarray, np.generic)):
        raise ValueError(
            f"create_optimizer: initial is compared by value, but leaf {path!r} has none here; give arrays, and call "
            "tx.init eagerly, outside jit and eval_shape."
        )
    return hashlib.blake2b(np.asarray(leaf).tobytes(), digest_size=16).digest()
