"""Octo's image tokenizer: convolutions with standardised kernels, as early as possible, instead of a deep tower."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from octo_integration.model.config import Build, StemConfig
from octo_integration.model.dense import dense
from octo_integration.model.partition import by_example

POSITION_INIT = nn.initializers.normal(0.02)
GROUPS = 32
EPS = 1e-5


class StdConv(nn.Module):
    """A 3 x 3 convolution of stride 2 whose kernel has mean 0 and variance 1 per output (arXiv 1903.10520)."""

    features: int
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H / 2, W / 2, features]."""
        shape = (3, 3, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        mean = kernel.mean((0, 1, 2), keepdims=True)
        kernel = (kernel - mean) / jnp.sqrt(kernel.var((0, 1, 2), keepdims=True) + EPS)
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            window_strides=(2, 2),
            padding=((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y + bias.astype(self.dtype)


class Stem(nn.Module):
    """Images to one feature vector per patch, row by row."""

    config: StemConfig
    build: Build

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """[B, H, W, 3], pixels 0..255 (uint8 or float) -> [B, (H / patch) * (W / patch), width]."""
        config, dtype = self.config, self.build.dtype
        x = images.astype(jnp.float32) / 127.5 - 1.0
        for i, channels in enumerate(config.channels):
            x = by_example(StdConv(channels, dtype, name=f"conv_{i}")(x))
            groups = math.gcd(GROUPS, channels)
            x = nn.relu(nn.GroupNorm(groups, dtype=jnp.float32, name=f"norm_{i}")(x)).astype(dtype)
        x = dense(self.build, config.width, "patch_embed")(x.reshape(len(x), -1, x.shape[-1]))
        positions = self.param("pos_embed", POSITION_INIT, (x.shape[1], config.width))
        return by_example(x + positions.astype(dtype))
