"""A toy with the shape of the real thing (scanned blocks, fresh head) for tests of the training machinery."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import maps_optax as mx
from octo_integration.config import FinetuneConfig, MapsConfig, MeshConfig, OptimizerConfig
from octo_integration.state import sharding
from octo_integration.state.methods import holding
from octo_integration.state.optimizer import Optimizer, make_optimizer
from octo_integration.state.train_state import TrainState, abstract_state, init_state
from octo_integration.train.step import make_loss, make_train_step

SEED = 5
LAYERS = mx.LayerStack(
    {
        "vision": {"vision/blocks/": "stacked", "vision/embed/": "first"},
        "language": {"language/": "first"},
    },
    free=["head/"],
)


class Block(nn.Module):
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        return x + nn.Dense(x.shape[-1], dtype=self.dtype, name="fc")(nn.gelu(x)), None


class Vision(nn.Module):
    width: int
    dtype: str

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        x = nn.Dense(self.width, dtype=self.dtype, name="embed")(image.reshape(image.shape[0], -1))
        scan = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return scan(self.dtype, name="blocks")(x, None)[0]


class Micro(nn.Module):
    """32 numbers of image -> a chunk of 2 actions with 3 entries."""

    width: int = 16
    dtype: str = "float32"

    def loss(self, batch: Any, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        error = jnp.abs(self(batch["observation"], batch["task"]) - batch["action"]).astype(jnp.float32)
        mask = batch["action_pad_mask"]
        return (error * mask).sum() / mask.sum(), {"drawn": jax.random.uniform(key)}

    @nn.compact
    def __call__(self, observation: Any, task: Any) -> jax.Array:
        x = Vision(self.width, self.dtype, name="vision")(observation["image"])
        x = nn.Dense(self.width, dtype=self.dtype, name="language")(nn.tanh(x))
        return nn.Dense(6, dtype=self.dtype, name="head")(x).reshape(-1, 2, 3)


def params(width: int = 16, seed: int = 0) -> Any:
    observation = {"image": jnp.zeros((1, 32))}
    return jax.device_get(Micro(width).init(jax.random.key(seed), observation, {})["params"])


def batch(index: int, size: int = 8) -> dict[str, Any]:
    """Batch `index` of a regression that a linear model almost solves."""
    rng = np.random.default_rng(index)
    image = rng.normal(size=(size, 32)).astype(np.float32)
    action = np.tanh(image[:, :6] * 2).reshape(size, 2, 3).astype(np.float32)
    mask = np.ones((size, 2, 3), bool)
    mask[0, 1] = False
    return {"observation": {"image": image}, "task": {}, "action": action, "action_pad_mask": mask}


def optimizer_of(optimizer: OptimizerConfig, maps: MapsConfig, width: int = 16) -> Optimizer:
    """That of a run on these parameters."""
    config = FinetuneConfig("", optimizer=optimizer, maps=maps)
    return make_optimizer(config, holding(config, LAYERS, params(width)))


class Machine(NamedTuple):
    """The compiled training of one configuration on one device."""

    tx: Any
    like: TrainState
    step: Any

    def start(self, theta0: Any) -> TrainState:
        return init_state(theta0, self.tx, self.like)


@functools.cache
def machine(optimizer: OptimizerConfig, maps: MapsConfig, width: int = 16, dtype: str = "float32") -> Machine:
    """One per configuration and test process: compiling is what takes the time."""
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    tx = optimizer_of(optimizer, maps, width)
    like = abstract_state(params(width), tx, mesh, 64)
    return Machine(tx, like, make_train_step(make_loss(Micro(width, dtype)), tx, like, mesh, SEED))
