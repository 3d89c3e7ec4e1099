"""The decoder: RMSNorm, grouped attention, rotary positions, SwiGLU (Qwen2.5, arXiv 2412.15115).

It takes embeddings, so that images, proprio and readouts can stand between words, and whatever
attention mask the caller makes.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from octo_integration.model.attention import Attention
from octo_integration.model.config import LanguageConfig
from octo_integration.model.partition import by_example

EMBED_INIT = nn.initializers.normal(0.02)


class SwiGlu(nn.Module):
    """down(silu(gate(x)) * up(x)) (arXiv 2002.05202)."""

    hidden: int
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, N, W] -> [B, N, W]."""
        dense = functools.partial(nn.Dense, use_bias=False, dtype=self.dtype)
        gate, up = dense(self.hidden, name="gate")(x), dense(self.hidden, name="up")(x)
        return dense(x.shape[-1], name="down")(nn.silu(gate) * up)


class Block(nn.Module):
    """x + attn(norm1(x)), then x + mlp(norm2(x))."""

    config: LanguageConfig
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array, positions: jax.Array, mask: jax.Array) -> tuple[jax.Array, None]:
        """As `Decoder`, in the form that nn.scan takes."""
        config = self.config
        norm = functools.partial(nn.RMSNorm, epsilon=config.norm_eps, dtype=jnp.float32)
        attention = Attention(
            config.heads,
            config.kv_heads,
            config.qkv_bias,
            False,
            config.rope_theta,
            self.dtype,
            name="attn",
        )
        x = by_example(x + attention(norm(name="norm1")(x), positions, mask))
        return by_example(x + SwiGlu(config.mlp, self.dtype, name="mlp")(norm(name="norm2")(x))), None


class Decoder(nn.Module):
    """The language model in parts: embed, run, and (in pretraining) read the next token."""

    config: LanguageConfig
    dtype: str

    def setup(self) -> None:
        """Makes the submodules."""
        config = self.config
        self.embed = nn.Embed(config.vocabulary, config.width, embedding_init=EMBED_INIT, dtype=self.dtype)
        scanned = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=config.depth,
        )
        self.blocks = scanned(config, self.dtype)
        self.norm = nn.RMSNorm(config.norm_eps, dtype=jnp.float32)

    def __call__(self, x: jax.Array, positions: jax.Array, mask: jax.Array) -> jax.Array:
        """[B, N, W] embeddings, int[B, N], bool[B, N, N] of `blockwise_mask` -> [B, N, W]."""
        x, _ = self.blocks(x, positions, mask)
        return self.norm(x).astype(self.dtype)

    def words(self, tokens: jax.Array) -> jax.Array:
        """int32[B, L] -> [B, L, W] embeddings."""
        return self.embed(tokens)

    def logits(self, x: jax.Array) -> jax.Array:
        """[B, L, W] outputs -> f32[B, L, vocabulary], through the embedding (tied head)."""
        return self.embed.attend(x).astype(jnp.float32)
