"""FLOPs of products, inside and outside loops."""

import jax
import jax.numpy as jnp

from benchmarks.flops import flops

X, W = jax.ShapeDtypeStruct((5, 8), jnp.float32), jax.ShapeDtypeStruct((3, 8, 8), jnp.float32)
ONE = 2 * 5 * 8 * 8


def layers(x, w):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0].sum()


def test_a_loop_over_layers_counts_once_per_layer():
    assert flops(lambda x, w: x @ w[0], X, W) == ONE
    assert flops(jax.jit(layers), X, W) == 3 * ONE


def test_a_backward_pass_counts_twice_and_what_it_computes_again_too():
    assert flops(jax.grad(layers, argnums=(0, 1)), X, W) == 9 * ONE
    assert flops(jax.grad(jax.checkpoint(layers), argnums=(0, 1)), X, W) == 12 * ONE
