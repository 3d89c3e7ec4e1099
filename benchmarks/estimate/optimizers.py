"""How often is the estimated sign the exact one, after optimizers whose momentum is not Adam's?

    python -m benchmarks.estimate.optimizers

A net of four layers is trained on one teacher, then fine-tuned on another with `optax.chain(optimizer, mx.spd(1.0))`.
At every step the exact criterion is evaluated beside the estimate, on the same state.
"""

import functools
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import maps_optax as mx

WIDTH, LAYERS, BATCH, STEPS, LR, SEEDS = 32, 4, 32, 300, 3e-3, 5

# name -> optimizer, and the b1 that `mx.spd` is told (its default is Adam's, 0.9)
OPTIMIZERS: dict[str, tuple[optax.GradientTransformation, float]] = {
    "adam": (optax.adam(LR), 0.9),
    "adam, warmup and cosine": (optax.adam(optax.warmup_cosine_decay_schedule(0, LR, 30, STEPS, LR / 10)), 0.9),
    "adam, b1 0.5, untold": (optax.adam(LR, b1=0.5), 0.9),
    "adamw, decay 0.1": (optax.adamw(LR, weight_decay=0.1), 0.9),
    "adamw, decay 1": (optax.adamw(LR, weight_decay=1.0), 0.9),
    "nadam": (optax.nadam(LR), 0.9),
    "sgd, momentum 0.9": (optax.sgd(LR, momentum=0.9), 0.9),
    "lion": (optax.lion(LR / 3), 0.9),
    "muon": (optax.contrib.muon(LR), 0.9),
    "adafactor": (optax.adafactor(LR), 0.9),
}


def net(params: Any, x: jax.Array) -> jax.Array:
    """Four layers with tanh between them."""
    for i in range(LAYERS):
        x = x @ params[f"layer_{i}"]["kernel"] + params[f"layer_{i}"]["bias"]
        x = jnp.tanh(x) if i < LAYERS - 1 else x
    return x


def weights(key: jax.Array) -> Any:
    """Random weights of `net`."""
    kernels = jax.random.normal(key, (LAYERS, WIDTH, WIDTH)) / WIDTH**0.5
    return {f"layer_{i}": {"kernel": kernels[i], "bias": jnp.zeros(WIDTH)} for i in range(LAYERS)}


def train(params: Any, tx: Any, teacher: Any, key: jax.Array, watch: Any = None) -> tuple[Any, Any]:
    """The parameters after `STEPS` batches of the teacher's, and the (estimated, exact) triggers of every step."""

    def loss(params: Any, x: jax.Array) -> jax.Array:
        return jnp.mean((net(params, x) - net(teacher, x)) ** 2)

    def step(carry: Any, key: jax.Array) -> tuple[Any, Any]:
        params, state = carry
        grads = jax.grad(loss)(params, jax.random.normal(key, (BATCH, WIDTH)))
        updates, new_state = tx.update(grads, state, params)
        seen = None
        if watch is not None:
            given, _ = watch[0].update(grads, state[0], params)
            _, exact = watch[1].update(given, state[1], params, grad=grads)
            seen = (new_state[1].triggered, exact.triggered)
        return (optax.apply_updates(params, updates), new_state), seen

    (params, _), seen = jax.lax.scan(step, (params, tx.init(params)), jax.random.split(key, STEPS))
    return params, seen


@functools.partial(jax.jit, static_argnums=0)
def signs(name: str, seed: jax.Array) -> Any:
    """(estimated, exact) triggers (STEPS, tensors) of a fine-tuning run."""
    optimizer, b1 = OPTIMIZERS[name]
    keys = jax.random.split(jax.random.key(seed), 5)
    pretrained, _ = train(weights(keys[0]), optax.adam(LR), weights(keys[1]), keys[2])
    watch = (optimizer, mx.spd(1.0, b1=b1))
    return train(pretrained, optax.chain(*watch), weights(keys[3]), keys[4], watch)[1]


def main() -> None:
    """Prints the table."""
    print("| optimizer | signs that agree | of the exact triggers, caught |\n|---|---|---|")
    for name in OPTIMIZERS:
        estimated, exact = (np.asarray(x)[:, 1:] for x in jax.vmap(functools.partial(signs, name))(jnp.arange(SEEDS)))
        caught = (estimated * exact).sum() / max(exact.sum(), 1)
        print(f"| {name} | {(estimated == exact).mean():.2f} | {caught:.2f} |")


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="maps_optax estimates")
        main()
