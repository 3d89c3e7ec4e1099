"""A whole training run of any JAX model in one call: mesh, checkpoints, log; run it again and it goes on.

python examples/09_fit.py [RUN]     Needs the [vla] extra.
"""

import sys
import tempfile

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import maps_optax as mx
from octo_integration.train import fit


class Model(nn.Module):
    """Of anything that gives a loss."""

    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Dense(32, name="vision")(x))
        x = nn.tanh(nn.Dense(32, name="language")(x))
        return nn.Dense(4, name="head")(x)


out = sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()
model = Model()
pretrained = model.init(jax.random.key(0), jnp.zeros((1, 16)))["params"]  # stands for a checkpoint
layers = mx.LayerStack({"vision": {"vision/": "first"}, "language": {"language/": "first"}}, free=["^head/"])


def batches(n):
    """Batch n, n + 1, ...: what is resumed sees what it would have seen."""
    while True:
        x = np.random.default_rng(n).normal(size=(32, 16)).astype(np.float32)
        yield {"x": x, "y": np.sin(x[:, :4])}
        n += 1


def loss(params, batch, key):
    """Any function of parameters and a batch; key is for dropout and the like."""
    return jnp.mean((model.apply({"params": params}, batch["x"]) - batch["y"]) ** 2)


tx = mx.chain(optax.adamw(3e-3), mx.maps(layers, lambda_max=2.0))
found = fit(loss, pretrained, tx, batches, out=out, steps=200, layers=layers)
print(f"{found.step} steps; {out} holds checkpoints without θ0, metrics.jsonl and TensorBoard's events")
