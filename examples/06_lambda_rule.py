"""A rule of your own for λ: hold a layer harder where it has drifted beyond a budget.

python examples/06_lambda_rule.py
"""

import jax
import jax.numpy as jnp
import optax

import maps_optax as mx

WIDTH, STEPS, BATCH, BUDGET = 32, 400, 4, 0.4

kernels = jax.random.normal(jax.random.key(0), (2, 3, WIDTH, WIDTH)) / WIDTH**0.5
pretrained, task = ({f"layer_{i}": {"kernel": k[i]} for i in range(3)} for k in kernels)


def apply(params, x):
    """Three layers."""
    for layer in params.values():
        x = jnp.tanh(x @ layer["kernel"])
    return x


def rule(now: mx.AdaptStats):
    """λ of every layer, from vectors with one entry per layer; see the fields of mx.AdaptStats.

    It doubles where a layer is beyond its budget, and halves where it is within.
    """
    beyond = now.drift > BUDGET * now.norm
    return jnp.clip(jnp.where(beyond, 2.0 * now.strength, 0.5 * now.strength), 1e-3, 8.0)


def finetune(**options):
    """Relative drift and λ of every layer in the end."""
    tx = mx.chain(optax.adam(1e-2), mx.spd(1.0, max_pull=1.0, **options))

    @jax.jit
    def step(params, opt_state, key):
        x = jax.random.normal(key, (BATCH, WIDTH))
        grads = jax.grad(lambda p: jnp.mean((apply(p, x) - apply(task, x)) ** 2))(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    params, opt_state = pretrained, tx.init(pretrained)
    for key in jax.random.split(jax.random.key(1), STEPS):
        params, opt_state = step(params, opt_state, key)
    found = mx.metrics(opt_state, strength=True)
    return {
        name: (float(found[f"drift/{name}/kernel"] / jnp.linalg.norm(layer["kernel"])),
               float(found[f"strength/{name}/kernel"]))
        for name, layer in pretrained.items()
    }  # fmt: skip


# Two rules that are built in: mx.hypergradient(rate) and mx.drift_budget(budget, rate).
results = {
    "λ 1": finetune(),
    "our rule": finetune(adapt=rule),
    "mx.drift_budget": finetune(adapt=mx.drift_budget(BUDGET, rate=0.1)),
}
for name, layers in results.items():
    print(f"{name}: ", ", ".join(f"{layer} drift {drift:.2f}, λ {lam:.2g}" for layer, (drift, lam) in layers.items()))
