"""flax.nnx: MAPS within nnx.Optimizer; the stack is read off the model.

python examples/03_nnx.py
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import maps_optax as mx

WIDTH, STEPS, BATCH = 32, 200, 4


class Model(nnx.Module):
    """Four blocks and a head."""

    def __init__(self, rngs):
        self.blocks = nnx.List([nnx.Linear(WIDTH, WIDTH, rngs=rngs) for _ in range(4)])
        self.head = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x):
        for block in self.blocks:
            x = x + jnp.tanh(block(x))
        return self.head(x)


model, task = Model(nnx.Rngs(0)), Model(nnx.Rngs(1))  # the first stands for a pretrained model

# Instead of writing patterns: which leaf comes first is read off the forward pass. Look at the proposal before use.
graph, pretrained = nnx.split(model)
layers = mx.infer_layers(
    lambda state, x: nnx.merge(graph, state)(x), pretrained, jnp.zeros((1, WIDTH)), free=["^head/"]
)
print(layers.modules)
print(mx.describe(layers, pretrained, lambda_max=2.0))

tx = mx.chain(optax.adam(1e-2), mx.maps(layers, lambda_max=2.0))
optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)  # θ0 is what the model holds now


@nnx.jit
def step(model, optimizer, x):
    """A training step as it was before MAPS."""
    grads = nnx.grad(lambda model: jnp.mean((model(x) - task(x)) ** 2))(model)
    optimizer.update(model, grads)


for key in jax.random.split(jax.random.key(2), STEPS):
    step(model, optimizer, jax.random.normal(key, (BATCH, WIDTH)))

metrics = {name: float(value) for name, value in mx.metrics(optimizer.opt_state, layers).items()}
print({name: round(value, 3) for name, value in metrics.items() if name.startswith("drift/")})
