"""Attention: who may look at whom, rotary positions, projections around softmax(q k^T) v."""

import functools
from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from octo_integration.model.config import Build
from octo_integration.model.dense import dense


def blockwise_mask(times: jax.Array, valid: jax.Array) -> jax.Array:
    """Octo's block-wise causal attention (arXiv 2405.12213) from one number per token.

    Token q attends to token k where time[k] <= time[q] and k is valid. Tokens of one time see each
    other. Instructions have time -1, observations their timestep; a time per token is causal.

    Args:
      times: int[N], or int[B, N] where samples differ.
      valid: bool[B, N], False = padding, which nothing attends to.

    Returns:
      bool[B, N (query), N (key)].
    """
    return (times[..., None, :] <= times[..., :, None]) & valid[:, None, :]


def rope(x: jax.Array, positions: jax.Array, theta: float) -> jax.Array:
    """Rotary position embedding (arXiv 2104.09864), halves rotated against each other as in Llama.

    Pair i of entries (x[i], x[i + D/2]) turns by the angle position * theta ** (-2 i / D), so
    <rope(q, m), rope(k, n)> hangs on m - n only.

    Args:
      x: [B, N, H, D], any float dtype; D even.
      positions: int[B, N].
      theta: base of the wavelengths.

    Returns:
      As x; computed in float32.
    """
    half = x.shape[-1] // 2
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions[:, :, None, None].astype(jnp.float32) * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None,
    bias: jax.Array | None,
    *,
    scale: float | None,
    implementation: Literal["cudnn"] | None = None,
) -> jax.Array:
    """`jax.nn.dot_product_attention` of [B, N, H, D], mask bool[B, 1, N, N], bias [1, H, N, N]."""
    return jax.nn.dot_product_attention(q, k, v, bias=bias, mask=mask, scale=scale, implementation=implementation)


def even(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None,
    bias: jax.Array | None,
    attention: Callable[..., jax.Array],
) -> jax.Array:
    """`attention` over an even number of tokens, which is what cuDNN's gradient needs: an odd one gets one more, that
    no other sees and that is cut off again.
    """
    length = q.shape[1]
    if length % 2 == 0:
        return attention(q, k, v, mask, bias)
    q, k, v = (jnp.pad(x, [(0, 0), (0, 1), (0, 0), (0, 0)]) for x in (q, k, v))
    if mask is None:
        mask = jnp.ones((1, 1, length, length), bool)
    last = [(0, 0), (0, 0), (0, 1), (0, 1)]
    # The added query sees the first key, so that its softmax is of something.
    mask = jnp.pad(mask, last).at[:, :, length, 0].set(True)
    return attention(q, k, v, mask, None if bias is None else jnp.pad(bias, last))[:, :length]


class Attention(nn.Module):
    """Multi-head attention over one sequence, with grouped keys and values.

    Attributes:
      heads, kv_heads: query heads, and heads of keys and values.
      qkv_bias, out_bias: which projections have biases.
      rope_theta: base of the rotary positions of queries and keys; None: none.
      build: of the model; the softmax is float32 whatever the dtype.
      scale: of the logits; None: 1 / sqrt(size of a head).
    """

    heads: int
    kv_heads: int
    qkv_bias: bool
    out_bias: bool
    rope_theta: float | None
    build: Build
    scale: float | None = None

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array | None = None,
        mask: jax.Array | None = None,
        bias: jax.Array | None = None,
    ) -> jax.Array:
        """x: [B, N, W]; positions: int[B, N], for rope_theta; mask: bool[B, N, N]; bias of the logits: [1, H, N, N].

        Returns:
          [B, N, W].
        """
        width = x.shape[-1]
        size = width // self.heads
        q = dense(self.build, (self.heads, size), "query", bias=self.qkv_bias)(x)
        k = dense(self.build, (self.kv_heads, size), "key", bias=self.qkv_bias)(x)
        v = dense(self.build, (self.kv_heads, size), "value", bias=self.qkv_bias)(x)
        if self.rope_theta is not None and positions is not None:
            q, k = rope(q, positions, self.rope_theta), rope(k, positions, self.rope_theta)
        mask = None if mask is None else mask[:, None]
        bias = None if bias is None else bias.astype(q.dtype)
        if self.build.cudnn:
            y = even(q, k, v, mask, bias, functools.partial(attend, implementation="cudnn", scale=self.scale))
        else:
            y = attend(q, k, v, mask, bias, scale=self.scale)
        return dense(self.build, width, "out", bias=self.out_bias, inputs=2)(y)
