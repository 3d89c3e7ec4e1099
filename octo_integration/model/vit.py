"""Vision towers: the pre-LN transformer over patches that DINOv2, SigLIP and CLIP share.

DINOv2 (arXiv 2304.07193, with registers 2309.16588) adds a class token, registers and LayerScale;
SigLIP (arXiv 2303.15343) has none of them and the tanh GELU; CLIP (arXiv 2103.00020) has a class token, a norm before
the first block and its own GELU. Position embeddings are of patches only: that of a class token is part of `cls_token`.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from octo_integration.model.attention import Attention
from octo_integration.model.blocks import run_blocks
from octo_integration.model.config import Build, TowerConfig
from octo_integration.model.dense import dense
from octo_integration.model.partition import by_example

TOKEN_INIT = nn.initializers.normal(0.02)


def quick_gelu(x: jax.Array) -> jax.Array:
    """CLIP's approximation of the GELU."""
    return x * nn.sigmoid(1.702 * x)


GELU: dict[str, Callable[[jax.Array], jax.Array]] = {
    "exact": functools.partial(nn.gelu, approximate=False),
    "tanh": functools.partial(nn.gelu, approximate=True),
    "quick": quick_gelu,
}


class Mlp(nn.Module):
    """Dense, GELU, Dense."""

    config: TowerConfig
    build: Build

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, N, W] -> [B, N, W]."""
        hidden = GELU[self.config.gelu](dense(self.build, self.config.mlp, "fc1")(x))
        return dense(self.build, x.shape[-1], "fc2")(hidden)


class Block(nn.Module):
    """x + ls1 * attn(norm1(x)), then x + ls2 * mlp(norm2(x)); without LayerScale ls is 1."""

    config: TowerConfig
    build: Build

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, None]:
        """[B, N, W] -> ([B, N, W], None), the form that `run_blocks` takes."""
        config, build = self.config, self.build
        norm = functools.partial(nn.LayerNorm, epsilon=config.norm_eps, dtype=jnp.float32)
        attention = Attention(config.heads, config.heads, True, True, None, build, name="attn")
        x = by_example(x + self._scaled("ls1", attention(norm(name="norm1")(x))))
        mlp = Mlp(config, build, name="mlp")
        return by_example(x + self._scaled("ls2", mlp(norm(name="norm2")(x)))), None

    def _scaled(self, name: str, x: jax.Array) -> jax.Array:
        if self.config.layer_scale is None:
            return x
        start = nn.initializers.constant(self.config.layer_scale)
        return x * self.param(name, start, (x.shape[-1],)).astype(x.dtype)


class Tower(nn.Module):
    """Images to one feature vector per patch, row by row."""

    config: TowerConfig
    build: Build

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """[B, H, W, 3], pixels 0..255 (uint8 or float) -> [B, (H / patch) * (W / patch), width]."""
        config, dtype = self.config, self.build.dtype
        x = patches(images, config.patch)
        x = (x.astype(jnp.float32) / 255.0 - jnp.asarray(config.mean)) / jnp.asarray(config.std)
        # The kernel has the shape of a convolution's, [patch, patch, 3, width].
        x = dense(self.build, config.width, "patch_embed", bias=not config.pre_norm, inputs=3)(x)
        pos_embed = self.param("pos_embed", sincos_positions, (x.shape[1], config.width))
        x = x + pos_embed.astype(x.dtype)
        before = []
        if config.cls_token:
            before.append(self._tokens("cls_token", 1))
        if config.registers:
            before.append(self._tokens("register_tokens", config.registers))
        tokens = [jnp.broadcast_to(t, (len(x), *t.shape)) for t in before]
        x = by_example(jnp.concatenate([*tokens, x], axis=1))
        norm = functools.partial(nn.LayerNorm, config.norm_eps, dtype=jnp.float32)
        if config.pre_norm:
            x = norm(name="pre_norm")(x).astype(dtype)
        last, starting = config.features == "last", self.is_initializing()
        x = run_blocks(Block, config, self.build, x, initializing=starting, unread=0 if last else 1)
        x = x[:, sum(len(t) for t in before) :]
        if last or starting:  # the norm that penultimate features leave out is part of the weights all the same
            x = norm(name="norm")(x).astype(dtype)
        return x

    def _tokens(self, name: str, count: int) -> jax.Array:
        return self.param(name, TOKEN_INIT, (count, self.config.width)).astype(self.build.dtype)


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


def patches(images: jax.Array, size: int) -> jax.Array:
    """[B, H, W, C] -> [B, (H / size) * (W / size), size, size, C], row by row."""
    batch, height, width, channels = images.shape
    grid = images.reshape(batch, height // size, size, width // size, size, channels)
    return grid.swapaxes(2, 3).reshape(batch, -1, size, size, channels)
