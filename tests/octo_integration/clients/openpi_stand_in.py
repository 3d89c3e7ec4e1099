"""A trainer with openpi's interface to an optimizer and none of its code: NNX model, train state, FSDP by bytes."""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

SHAPES = {
    "PaliGemma/img/embedding/kernel": (4, 16),
    "PaliGemma/img/Transformer/encoderblock/LayerNorm_1/scale": (3, 16),
    "PaliGemma/img/Transformer/encoderblock/MlpBlock_0/Dense_1/kernel": (3, 16, 16),
    "PaliGemma/img/Transformer/encoder_norm/scale": (16,),
    "PaliGemma/img/head/kernel": (16, 8),
    "PaliGemma/llm/embedder/input_embedding": (32, 8),
    "PaliGemma/llm/layers/attn/q_einsum/w": (2, 2, 8, 4),
    "PaliGemma/llm/layers/attn/q_einsum_1/w": (2, 2, 8, 4),
    "PaliGemma/llm/layers/mlp/linear": (2, 16, 8),
    "action_out_proj/kernel": (8, 4),
}
ADAPTERS = {
    "PaliGemma/llm/layers/attn/q_einsum/lora_a": (2, 2, 8, 3),
    "PaliGemma/llm/layers/attn/q_einsum/lora_b": (2, 2, 3, 4),
    "PaliGemma/llm/layers/attn/q_einsum_1/lora_a": (2, 2, 8, 3),
    "PaliGemma/llm/layers/attn/q_einsum_1/lora_b": (2, 2, 3, 4),
    "PaliGemma/llm/layers/mlp/linear_lora_a": (2, 16, 3),
    "PaliGemma/llm/layers/mlp/linear_lora_b": (2, 3, 8),
}


@runtime_checkable
class OptimizerConfig(Protocol):
    """What openpi asks of the `optimizer` in its config."""

    def create(self, lr: Any, weight_decay_mask: Any = None) -> optax.GradientTransformation: ...


@dataclasses.dataclass(frozen=True)
class Plain:
    """An optimizer config of a transformation written by hand; `make` gets the learning rate."""

    make: Callable[[Any], optax.GradientTransformation]

    def create(self, lr: Any, weight_decay_mask: Any = None) -> optax.GradientTransformation:
        del weight_decay_mask
        return self.make(lr)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    optimizer: OptimizerConfig
    lora: bool = False
    ema_decay: float | None = None
    min_bytes: int = 2048  # openpi's 4 MiB, for small leaves

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {**SHAPES, **ADAPTERS} if self.lora else SHAPES

    def frozen(self, name: str) -> bool:
        """A LoRA config freezes Gemma and the action expert, but for the adapters."""
        return self.lora and "llm" in name and "lora" not in name

    @property
    def trainable_filter(self) -> Any:
        return nnx.All(nnx.Param, lambda path, _: not self.frozen("/".join(path)))


@flax.struct.dataclass
class TrainState:
    step: Any
    params: nnx.State
    model_def: Any
    opt_state: Any
    tx: optax.GradientTransformation = flax.struct.field(pytree_node=False)
    ema_params: nnx.State | None = None


class Model(nnx.Module):
    """Parameters at openpi's places, float32, the frozen ones bfloat16."""

    def __init__(self, config: TrainConfig) -> None:
        tree: dict[str, Any] = {}
        for seed, (name, shape) in enumerate(config.shapes().items()):
            *parents, last = name.split("/")
            node = functools.reduce(lambda node, key: node.setdefault(key, {}), parents, tree)
            values = np.random.default_rng(seed).normal(size=shape)
            node[last] = nnx.Param(jnp.asarray(values, jnp.bfloat16 if config.frozen(name) else jnp.float32))
        for name, below in tree.items():
            setattr(self, name, _nest(below))

    def loss(self, slope: jax.Array) -> jax.Array:
        """Steps away from the start where `slope` is negative, and back where it is positive."""
        leaves = jax.tree_util.tree_leaves(nnx.state(self, nnx.Param))
        return sum(0.5 * slope * jnp.sum(x.astype(jnp.float32) ** 2) + 0.01 * jnp.sum(x) for x in leaves)


def _nest(tree: Any) -> Any:
    return nnx.Dict({k: _nest(v) for k, v in tree.items()}) if isinstance(tree, dict) else tree


def learning_rate() -> optax.Schedule:
    return optax.warmup_cosine_decay_schedule(0.01, 0.05, 2, 30, 0.005)


class Run:
    """A compiled `init` and `step` of one config, as openpi's training script makes them.

    Attributes:
      shapes: the train state by shape, what a checkpoint is restored into.
      shardings: where the train state lies; `place` may change what the FSDP rule says.
    """

    def __init__(self, config: TrainConfig, mesh: Any, place: Callable[[Any], Any] = lambda shardings: shardings):
        tx = config.optimizer.create(learning_rate(), weight_decay_mask=None)

        def init() -> TrainState:
            model_def, params = nnx.split(Model(config))
            opt_state = tx.init(nnx.filter_state(params, config.trainable_filter))
            ema_params = None if config.ema_decay is None else params
            return TrainState(jnp.asarray(0), params, model_def, opt_state, tx, ema_params)

        self.shapes: TrainState = jax.eval_shape(init)
        rule = functools.partial(fsdp_sharding, mesh=mesh, min_bytes=config.min_bytes)
        self.shardings: TrainState = place(jax.tree_util.tree_map(rule, self.shapes))
        self.init = jax.jit(init, out_shardings=self.shardings)
        self._step = jax.jit(
            functools.partial(train_step, config),
            in_shardings=(self.shardings, NamedSharding(mesh, PartitionSpec())),
            out_shardings=self.shardings,
            donate_argnums=0,
        )

    def train(self, state: TrainState, steps: int) -> TrainState:
        """Steps away from the start up to the fifth, then back, against the momentum of AdamW."""
        for t in range(int(state.step), int(state.step) + steps):
            state = self._step(state, jnp.asarray(-1.0 if t < 5 else 0.3))
        return state


def fsdp_sharding(array: Any, mesh: Any, min_bytes: int) -> NamedSharding:
    """The longest axis that divides is split, where the array has at least `min_bytes`."""
    size, axes = mesh.shape["fsdp"], [None] * len(array.shape)
    large = np.prod(array.shape) * np.dtype(array.dtype).itemsize >= min_bytes and len(array.shape) > 1
    divisible = [i for i in np.argsort(array.shape)[::-1] if array.shape[i] % size == 0] if large and size > 1 else []
    for i in divisible[:1]:
        axes[i] = "fsdp"
    return NamedSharding(mesh, PartitionSpec(*axes))


def train_step(config: TrainConfig, state: TrainState, slope: jax.Array) -> TrainState:
    """One step; openpi's `update` takes three arguments."""
    model = nnx.merge(state.model_def, state.params)
    wanted = nnx.DiffState(0, config.trainable_filter)
    grads = nnx.grad(lambda model: model.loss(slope), argnums=wanted)(model)
    params = nnx.filter_state(state.params, config.trainable_filter)
    updates, opt_state = state.tx.update(grads, state.opt_state, params)
    nnx.update(model, optax.apply_updates(params, updates))
    params, ema_params = nnx.state(model), state.ema_params
    if config.ema_decay is not None:
        d = config.ema_decay
        ema_params = jax.tree_util.tree_map(lambda old, new: d * old + (1 - d) * new, ema_params, params)
    return dataclasses.replace(state, step=state.step + 1, params=params, opt_state=opt_state, ema_params=ema_params)


def one_device() -> Mesh:
    return Mesh(np.asarray(jax.devices()[:1]).reshape(1, 1), ("batch", "fsdp"))


def named(tree: Any) -> dict[str, Any]:
    """Path 'a/b/c' → leaf, of params or of anything shaped like them."""
    pairs = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {"/".join(re.findall(r"\['(\w+)'\]", jax.tree_util.keystr(path))): leaf for path, leaf in pairs}
