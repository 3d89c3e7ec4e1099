"""One task after the other: what is left of A after B, with Adam and with MAPS, which holds B near A's end.

Between these two tasks MAPS keeps no more of A than Adam does: its error rises from 0.34 to 5.0 with both.

python examples/10_sequential.py     Needs the [vla] extra. With maps-vla: --weights runs/a (--anchor-weights original).
"""

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import maps_optax as mx
from octo_integration.train import fit

WIDTH, STEPS, SEEDS = 32, 300, (0, 1, 2)
layers = mx.LayerStack({"vision": {r"block_(\d+)/": "block"}}, free=[r"^head/"])


def random_weights(seed):
    """Three residual blocks and a head, at random."""
    rng = np.random.default_rng(seed)
    names = ["block_0", "block_1", "block_2", "head"]
    return {name: {"kernel": rng.normal(size=(WIDTH, WIDTH)).astype(np.float32) / WIDTH**0.5} for name in names}


def apply(params, x):
    """The model."""
    for i in range(3):
        x = x + jnp.tanh(x @ params[f"block_{i}"]["kernel"])
    return x @ params["head"]["kernel"]


def loss(params, batch, key):
    """Mean squared error."""
    return jnp.mean((apply(params, batch["x"]) - batch["y"]) ** 2)


def task(seed, side):
    """A teacher of its own; the inputs of A and B lie on different sides."""
    teacher = random_weights(seed)

    def batches(n, size=16):
        while True:
            x = np.random.default_rng([seed, n]).normal(size=(size, WIDTH)).astype(np.float32)
            x[:, 0] = side * np.abs(x[:, 0]) * 3
            yield {"x": x, "y": np.asarray(apply(teacher, x))}
            n += 1

    return batches


def one_after_the_other(tx, seed):
    """Errors: of A after A, of A after B, of B after B."""
    a, b = task(100 + seed, 1.0), task(200 + seed, -1.0)
    held_out = [next(batches(10**6, 512)) for batches in (a, b)]
    error = jax.jit(lambda params, batch: loss(params, batch, None))
    with tempfile.TemporaryDirectory() as runs:
        options = {"steps": STEPS, "log_every": STEPS, "save_every": STEPS}
        first = fit(loss, random_weights(seed), tx, a, out=Path(runs, "a"), **options).params
        second = fit(loss, first, tx, b, out=Path(runs, "b"), **options).params  # θ0 of B: the end of A
    return [float(error(*pair)) for pair in ((first, held_out[0]), (second, held_out[0]), (second, held_out[1]))]


methods = {
    "Adam": mx.chain(optax.adam(3e-3)),
    "MAPS": mx.chain(optax.adam(3e-3), mx.maps(layers, lambda_max=2.0)),
}
results = {name: np.mean([one_after_the_other(tx, seed) for seed in SEEDS], axis=0) for name, tx in methods.items()}
print("mean squared error     A after A   A after B   B after B")
for name, errors in results.items():
    print(f"{name:<23}" + "".join(f"{error:9.3f}   " for error in errors))
