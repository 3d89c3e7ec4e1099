"""Octo's `octo.utils.train_utils` and train step as far as an optimizer meets them, and a small tree with its names."""

from fnmatch import fnmatch
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import maps_optax as mx


def create_optimizer(params: Any, **kwargs: Any) -> tuple[Any, Any, Any]:
    lr = kwargs["learning_rate"]
    lr_callable = optax.linear_schedule(lr["init_value"], lr["peak_value"], lr["warmup_steps"])
    kwargs["learning_rate"] = lr_callable
    clip = kwargs.pop("clip_gradient", None)
    frozen_keys = kwargs.pop("frozen_keys", None)
    micro = kwargs.pop("grad_accumulation_steps", None)
    tx: Any = optax.adamw(mu_dtype=jnp.bfloat16, mask=decayed(params), **kwargs)
    if micro:
        tx = optax.MultiSteps(tx, micro)
    if clip is not None:
        tx = optax.chain(optax.clip_by_global_norm(clip), tx)
    if not frozen_keys:
        return tx, lr_callable, global_norm
    labels = partitions(params, frozen_keys)

    def norm(params: Any) -> Any:
        kept = jax.tree_util.tree_map(lambda x, label: x * (label == "trainable"), params, labels)
        return global_norm(kept)

    return freeze_weights(tx, params, frozen_keys), lr_callable, norm


def freeze_weights(tx: Any, params: Any, frozen_keys: Any) -> Any:
    return optax.multi_transform({"trainable": tx, "frozen": optax.set_to_zero()}, partitions(params, frozen_keys))


def partitions(params: Any, frozen_keys: Any) -> Any:
    """ "frozen" where a leaf's keys, joined by dots, match one of `frozen_keys`, else "trainable"."""

    def label(keys: Any, leaf: Any) -> str:
        name = ".".join(key.key for key in keys)
        return "frozen" if any(fnmatch(name, pattern) for pattern in frozen_keys) else "trainable"

    return jax.tree_util.tree_map_with_path(label, params)


def decayed(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda keys, leaf: "kernel" in jax.tree_util.keystr(keys), params)


def global_norm(tree: Any) -> Any:
    return jnp.sqrt(sum(jnp.sum(x.astype(jnp.float32) ** 2) for x in jax.tree_util.tree_leaves(tree)))


train_utils = SimpleNamespace(create_optimizer=create_optimizer, freeze_weights=freeze_weights)


class TrainState(NamedTuple):
    """`tx`, static in Octo's, is passed beside it."""

    step: Any
    params: Any
    opt_state: Any

    @classmethod
    def create(cls, params: Any, tx: Any) -> "TrainState":
        return cls(jnp.zeros((), jnp.int32), params, tx.init(params))

    def apply_gradients(self, tx: Any, grads: Any) -> "TrainState":
        updates, opt_state = tx.update(grads, self.opt_state, self.params)
        return TrainState(self.step + 1, optax.apply_updates(self.params, updates), opt_state)


class Run(NamedTuple):
    params: Any
    opt_state: Any
    norms: list[Any]  # of every step's update
    triggered: list[np.ndarray]  # of every step


def train(tx: Any, params: Any, gradients: Any, steps: int = 8) -> Run:
    """Steps as in Octo's train.py: the state is donated, and `tx.update` called once more for the update's norm."""

    def train_step(state: TrainState, grads: Any) -> tuple[TrainState, Any]:
        updates, _ = tx.update(grads, state.opt_state, state.params)
        return state.apply_gradients(tx, grads), global_norm(updates)

    params = jax.tree_util.tree_map(jnp.array, params)  # what is donated is gone
    step, state = jax.jit(train_step, donate_argnums=0), TrainState.create(params, tx)
    norms, triggered = [], []
    for t in range(steps):
        state, norm = step(state, gradients(state.params, t))
        norms.append(norm)
        triggered.extend(np.asarray(found.triggered) for found in anchors(state.opt_state))
    return Run(state.params, state.opt_state, norms, triggered)


def anchors(opt_state: Any) -> list[Any]:
    """The states of `mx.maps`, wherever wrappers have nested them."""

    def is_state(node: Any) -> bool:
        return isinstance(node, mx.SPDState)

    return [node for node in jax.tree_util.tree_leaves(opt_state, is_leaf=is_state) if is_state(node)]


def octo_params(seed: int = 0) -> dict[str, Any]:
    """Eight layers: two of the stem, two of T5, the bridge, and the blocks 0, 2 and 10 of the transformer."""
    rng = np.random.default_rng(seed)

    def leaf() -> jax.Array:
        return jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)

    return {
        "heads_action": {"mean_proj": {"kernel": leaf()}},
        "octo_transformer": {
            "BlockTransformer_0": {
                "Transformer_0": {
                    "encoder_norm": {"scale": leaf()},
                    **{f"encoderblock_{i}": {"MlpBlock_0": {"Dense_0": {"kernel": leaf()}}} for i in (0, 10, 2)},
                }
            },
            "obs_primary_projection": {"kernel": leaf()},
            "observation_tokenizers_primary": {
                "SmallStem16_0": {
                    "StdConv_0": {"kernel": leaf(), "bias": leaf()},
                    "StdConv_1": {"kernel": leaf()},
                    "embedding": {"kernel": leaf()},
                }
            },
            "task_tokenizers_language": {
                "hf_model": {
                    "shared": {"embedding": leaf()},
                    "encoder": {"block": {str(i): {"layer": {"0": {"q": {"kernel": leaf()}}}} for i in range(2)}},
                }
            },
        },
    }
