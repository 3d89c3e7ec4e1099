"""Vision towers: the pre-LN transformer over patches that DINOv2 and SigLIP share.

DINOv2 (arXiv 2304.07193, with registers 2309.16588) adds a class token, registers and LayerScale;
SigLIP (arXiv 2303.15343) has none of them and the tanh GELU. Position embeddings are of patches
only: DINOv2's for the class token is part of `cls_token`.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from octo_integration.model.attention import Attention
from octo_integration.model.config import TowerConfig
from octo_integration.model.partition import by_example

NORM_EPS = 1e-6
TOKEN_INIT = nn.initializers.normal(0.02)


class Mlp(nn.Module):
    """Dense, GELU, Dense."""

    config: TowerConfig
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, N, W] -> [B, N, W]."""
        width = x.shape[-1]
        x = nn.Dense(self.config.mlp, dtype=self.dtype, name="fc1")(x)
        x = nn.gelu(x, approximate=self.config.gelu == "tanh")
        return nn.Dense(width, dtype=self.dtype, name="fc2")(x)


class Block(nn.Module):
    """x + ls1 * attn(norm1(x)), then x + ls2 * mlp(norm2(x)); without LayerScale ls is 1."""

    config: TowerConfig
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, None]:
        """[B, N, W] -> ([B, N, W], None), the form that nn.scan takes."""
        heads = self.config.heads
        norm = functools.partial(nn.LayerNorm, epsilon=NORM_EPS, dtype=jnp.float32)
        attention = Attention(heads, heads, True, True, None, self.dtype, name="attn")
        x = by_example(x + self._scaled("ls1", attention(norm(name="norm1")(x))))
        mlp = Mlp(self.config, self.dtype, name="mlp")
        return by_example(x + self._scaled("ls2", mlp(norm(name="norm2")(x)))), None

    def _scaled(self, name: str, x: jax.Array) -> jax.Array:
        if self.config.layer_scale is None:
            return x
        start = nn.initializers.constant(self.config.layer_scale)
        return x * self.param(name, start, (x.shape[-1],)).astype(x.dtype)


class Tower(nn.Module):
    """Images to one feature vector per patch, row by row."""

    config: TowerConfig
    dtype: str

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """[B, H, W, 3], pixels 0..255 (uint8 or float) -> [B, (H / patch) * (W / patch), width]."""
        config = self.config
        x = _patches(images, config.patch)
        x = (x.astype(jnp.float32) / 255.0 - jnp.asarray(config.mean)) / jnp.asarray(config.std)
        # The kernel has the shape of a convolution's, [patch, patch, 3, width].
        embed = nn.DenseGeneral(config.width, (-3, -2, -1), dtype=self.dtype, name="patch_embed")
        x = embed(x)
        pos_embed = self.param("pos_embed", sincos_positions, (x.shape[1], config.width))
        x = x + pos_embed.astype(x.dtype)
        before = []
        if config.cls_token:
            before.append(self._tokens("cls_token", 1))
        if config.registers:
            before.append(self._tokens("register_tokens", config.registers))
        tokens = [jnp.broadcast_to(t, (len(x), *t.shape)) for t in before]
        x = by_example(jnp.concatenate([*tokens, x], axis=1))
        blocks = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=config.depth)
        x, _ = blocks(config, self.dtype, name="blocks")(x)
        x = x[:, sum(len(t) for t in before) :]
        return nn.LayerNorm(NORM_EPS, dtype=jnp.float32, name="norm")(x).astype(self.dtype)

    def _tokens(self, name: str, count: int) -> jax.Array:
        return self.param(name, TOKEN_INIT, (count, self.config.width)).astype(self.dtype)


def sincos_positions(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Where a position embedding starts to learn: sines and cosines of row and column (as MoCo v3).

    Args:
      key: not used; initializers have one.
      shape: (N patches of a square, width, a multiple of 4).

    Returns:
      f32[N, width].
    """
    side, quarter = round(shape[0] ** 0.5), shape[1] // 4
    frequency = 10_000.0 ** (-np.arange(quarter) / quarter)
    row, column = np.divmod(np.arange(shape[0]), side)
    angles = [place[:, None] * frequency for place in (column, row)]
    return jnp.asarray(np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], axis=1), jnp.float32)


def _patches(images: jax.Array, size: int) -> jax.Array:
    """[B, H, W, 3] -> [B, (H / size) * (W / size), size, size, 3]."""
    batch, height, width, channels = images.shape
    grid = images.reshape(batch, height // size, size, width // size, size, channels)
    return grid.swapaxes(2, 3).reshape(batch, -1, size, size, channels)
