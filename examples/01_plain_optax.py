"""Plain Optax: two lines of a training loop change.

python examples/01_plain_optax.py
"""

import jax
import jax.numpy as jnp
import optax

import maps_optax as mx

WIDTH, STEPS, BATCH = 32, 300, 4


def apply(params, x):
    """Three residual vision blocks, a language layer, a head."""
    for i in range(3):
        x = x + jnp.tanh(x @ params["vision"][f"block_{i}"]["kernel"])
    return jnp.tanh(x @ params["language"]["kernel"]) @ params["head"]["kernel"]


def weights(seed):
    """Random weights."""
    k = jax.random.normal(jax.random.key(seed), (5, WIDTH, WIDTH)) / WIDTH**0.5
    vision = {f"block_{i}": {"kernel": k[i]} for i in range(3)}
    return {"vision": vision, "language": {"kernel": k[3]}, "head": {"kernel": k[4]}}


pretrained = weights(0)  # stands for a checkpoint; the head is new
teacher = weights(1)  # stands for the task

# Which leaves are pretrained, and in which order they stand. A leaf that no pattern names is an error.
layers = mx.LayerStack({"vision": {r"block_(\d+)/": "block"}, "language": {r"language/": "first"}}, free=[r"^head/"])
print(mx.describe(layers, pretrained, lambda_max=2.0))


def finetune(tx):
    """An ordinary training loop; it does not know of MAPS."""

    @jax.jit
    def step(params, opt_state, key):
        x = jax.random.normal(key, (BATCH, WIDTH))
        grads = jax.grad(lambda p: jnp.mean((apply(p, x) - apply(teacher, x)) ** 2))(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    params, opt_state = pretrained, tx.init(pretrained)  # init keeps a copy of what it sees: θ0
    for key in jax.random.split(jax.random.key(2), STEPS):
        params, opt_state = step(params, opt_state, key)
    return params, opt_state


def moved(params):
    """‖θ − θ0‖ of each vision block."""
    ends = zip(params["vision"].values(), pretrained["vision"].values())
    return [float(jnp.linalg.norm(now["kernel"] - start["kernel"])) for now, start in ends]


plain, _ = finetune(optax.chain(optax.adam(1e-2)))
held, opt_state = finetune(mx.chain(optax.adam(1e-2), mx.maps(layers, lambda_max=2.0)))  # MAPS stands last
drift = {"Adam": moved(plain), "MAPS": moved(held)}
for name, distances in drift.items():
    print(f"{name}: the vision blocks moved by", ", ".join(f"{d:.2f}" for d in distances))
print({name: round(float(value), 3) for name, value in mx.metrics(opt_state, layers).items()})
