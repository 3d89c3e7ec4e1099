"""The bridge from vision to language, Prismatic's MLPs (arXiv 2402.07865)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from octo_integration.model.config import Build
from octo_integration.model.dense import dense
from octo_integration.model.partition import by_example

# Of the fused bridge's hidden layer, times the width of the concatenated features.
EXPANSION = 4


class Bridge(nn.Module):
    """Several towers: fc3(gelu(fc2(gelu(fc1(features side by side))))), fused-gelu-mlp; one: fc2(gelu(fc1(features)))."""

    width: int
    build: Build

    @nn.compact
    def __call__(self, *features: jax.Array) -> jax.Array:
        """[B, N, W_i] of each tower, the same patches -> [B, N, width] for the decoder."""
        x = by_example(jnp.concatenate(features, axis=-1))
        widths = [self.width, self.width] if len(features) == 1 else [EXPANSION * x.shape[-1], self.width, self.width]
        for i, width in enumerate(widths):
            x = x if i == 0 else nn.gelu(x, approximate=False)
            x = dense(self.build, width, f"fc{i + 1}")(x)
        return by_example(x)
