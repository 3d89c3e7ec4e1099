"""The bridge from vision to language: Prismatic's fused-gelu-mlp (arXiv 2402.07865)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from octo_integration.model.partition import by_example

# Of the hidden layer, times the width of the concatenated features.
EXPANSION = 4


class Bridge(nn.Module):
    """fc3(gelu(fc2(gelu(fc1(features of both towers, side by side)))))."""

    width: int
    dtype: str

    @nn.compact
    def __call__(self, *features: jax.Array) -> jax.Array:
        """[B, N, W_i] of each tower, the same patches -> [B, N, width] for the decoder."""
        x = by_example(jnp.concatenate(features, axis=-1))
        x = nn.Dense(EXPANSION * x.shape[-1], dtype=self.dtype, name="fc1")(x)
        x = nn.Dense(self.width, dtype=self.dtype, name="fc2")(nn.gelu(x, approximate=False))
        return by_example(nn.Dense(self.width, dtype=self.dtype, name="fc3")(nn.gelu(x, approximate=False)))
