"""The T5 encoder (arXiv 1910.10683), which reads the instruction in Octo: relative positions, RMSNorm, no biases."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from octo_integration.model.attention import Attention
from octo_integration.model.blocks import run_blocks
from octo_integration.model.config import Build, T5Config
from octo_integration.model.dense import dense
from octo_integration.model.partition import by_example

NORM_EPS = 1e-6
EMBED_INIT = nn.initializers.normal(1.0)


class Mlp(nn.Module):
    """wo(relu(wi(x)))."""

    config: T5Config
    build: Build

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, L, W] -> [B, L, W]."""
        hidden = nn.relu(dense(self.build, self.config.mlp, "wi", bias=False)(x))
        return dense(self.build, x.shape[-1], "wo", bias=False)(hidden)


class Block(nn.Module):
    """x + attn(norm1(x)), then x + mlp(norm2(x))."""

    config: T5Config
    build: Build

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array, mask: jax.Array) -> tuple[jax.Array, None]:
        """In the form that `run_blocks` takes; bias [1, H, L, L], mask bool[B, L, L]."""
        heads = self.config.heads
        norm = functools.partial(nn.RMSNorm, epsilon=NORM_EPS, dtype=jnp.float32)
        attention = Attention(heads, heads, False, False, None, self.build, scale=1.0, name="attn")
        x = by_example(x + attention(norm(name="norm1")(x), mask=mask, bias=bias))
        return by_example(x + Mlp(self.config, self.build, name="mlp")(norm(name="norm2")(x))), None


class T5(nn.Module):
    """Instruction tokens to one vector each."""

    config: T5Config
    build: Build

    @nn.compact
    def __call__(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """int32[B, L] tokens, bool[B, L] mask (True = not padding) -> [B, L, width]."""
        config, dtype = self.config, self.build.dtype
        length = tokens.shape[1]
        embed = nn.Embed(config.vocabulary, config.width, embedding_init=EMBED_INIT, dtype=dtype, name="embed")
        table = nn.Embed(config.buckets, config.heads, dtype=dtype, name="relative_bias")
        distance = np.arange(length)[None, :] - np.arange(length)[:, None]
        bias = table(buckets(distance, config.buckets, config.max_distance)).transpose(2, 0, 1)[None]
        seen = jnp.broadcast_to(mask[:, None, :], (len(tokens), length, length))
        x = by_example(embed(tokens))
        x = run_blocks(Block, config, self.build, x, bias, seen, initializing=self.is_initializing())
        return nn.RMSNorm(NORM_EPS, dtype=jnp.float32, name="norm")(x).astype(dtype)


def buckets(distance: np.ndarray, count: int, furthest: int) -> np.ndarray:
    """The row of the bias table for each distance key - query, int[...] in and out.

    Half of the rows are for keys behind the query, half for those ahead; of each half, one half is for a distance each,
    the other for logarithmically wider ranges up to `furthest`.
    """
    half = count // 2
    exact = half // 2
    away = np.abs(distance)
    # In float32 as everywhere, so that distances on a boundary fall into the bucket they were trained in.
    ratio = np.log(np.maximum(away, 1).astype(np.float32) / np.float32(exact)) / np.float32(math.log(furthest / exact))
    wide = np.minimum(exact + (ratio * (half - exact)).astype(np.int64), half - 1)
    return np.where(away < exact, away, wide) + half * (distance > 0)
