"""LoRA: adapters held on the product that they add to a kernel, without a θ0.

python examples/05_lora.py
"""

import jax
import jax.numpy as jnp
import optax

import maps_optax as mx

WIDTH, RANK, ALPHA, STEPS, BATCH = 32, 4, 8.0, 300, 4
SCALE = ALPHA / RANK

kernels = jax.random.normal(jax.random.key(0), (2, WIDTH, WIDTH)) / WIDTH**0.5
base = {"block_0": kernels[0], "block_1": kernels[1]}  # pretrained, and frozen


def adapters(key):
    """A random, B zero: at the start an adapter adds nothing."""
    return {"lora_a": jax.random.normal(key, (WIDTH, RANK)) / WIDTH**0.5, "lora_b": jnp.zeros((RANK, WIDTH))}


params = {name: adapters(jax.random.key(i)) for i, name in enumerate(base)}
task = jax.random.normal(jax.random.key(3), (WIDTH, WIDTH)) / WIDTH**0.5


def apply(params, x):
    """Two layers, each with its adapter."""
    for name, kernel in base.items():
        x = jnp.tanh(x @ kernel + SCALE * (x @ params[name]["lora_a"]) @ params[name]["lora_b"])
    return x


def finetune(strength):
    """The size of what each adapter adds in the end: ‖s A B‖."""
    tx = mx.chain(optax.adam(1e-2), mx.lora_spd(strength, scale=SCALE))

    @jax.jit
    def step(params, opt_state, key):
        x = jax.random.normal(key, (BATCH, WIDTH))
        grads = jax.grad(lambda p: jnp.mean((apply(p, x) - jnp.tanh(x @ task)) ** 2))(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    now, opt_state = params, tx.init(params)
    for key in jax.random.split(jax.random.key(4), STEPS):
        now, opt_state = step(now, opt_state, key)
    return {name: float(SCALE * jnp.linalg.norm(ab["lora_a"] @ ab["lora_b"])) for name, ab in now.items()}


# λ as a pytree like params, read at B: here the first layer is held, the second free.
held = {"block_0": {"lora_a": None, "lora_b": 4.0}, "block_1": {"lora_a": None, "lora_b": None}}
added = {"LoRA": finetune(0.0), "held": finetune(held)}
for name, sizes in added.items():
    print(f"{name}: added to", ", ".join(f"{layer} {size:.2f}" for layer, size in sizes.items()))
