"""flax.linen: MAPS within a TrainState, blocks stacked by nn.scan.

python examples/02_linen_train_state.py
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.training.train_state import TrainState

import maps_optax as mx

WIDTH, STEPS, BATCH = 32, 200, 4


class Block(nn.Module):
    """One residual block, as nn.scan wants it."""

    @nn.compact
    def __call__(self, x, _):
        return x + nn.tanh(nn.Dense(WIDTH)(x)), None


class Model(nn.Module):
    """Four blocks whose parameters are stacked along axis 0, and a head."""

    @nn.compact
    def __call__(self, x):
        stack = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=4)
        x, _ = stack(name="blocks")(x, None)
        return nn.Dense(WIDTH, name="head")(x)


model = Model()
pretrained, task = (model.init(jax.random.key(seed), jnp.zeros((1, WIDTH)))["params"] for seed in (0, 1))

# "stacked": each of the four slices along axis 0 is a layer of its own, with its own λ.
layers = mx.LayerStack({"vision": {r"blocks/": "stacked"}}, free=[r"^head/"])
print(mx.describe(layers, pretrained, lambda_max=2.0))

# TrainState calls tx.update with three arguments; mx.chain hands the gradient on to MAPS all the same.
tx = mx.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2), mx.maps(layers, lambda_max=2.0, criterion="gradient"))
state = TrainState.create(apply_fn=model.apply, params=pretrained, tx=tx)


@jax.jit
def step(state, key):
    """A training step as it was before MAPS."""
    x = jax.random.normal(key, (BATCH, WIDTH))
    target = model.apply({"params": task}, x)
    loss = lambda params: jnp.mean((state.apply_fn({"params": params}, x) - target) ** 2)  # noqa: E731
    return state.apply_gradients(grads=jax.grad(loss)(state.params))


for key in jax.random.split(jax.random.key(2), STEPS):
    state = step(state, key)

metrics = {name: float(value) for name, value in mx.metrics(state.opt_state, layers).items()}
print({name: round(value, 3) for name, value in metrics.items() if name.startswith("drift/")})
