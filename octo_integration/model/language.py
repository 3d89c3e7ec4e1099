"""The decoder: RMSNorm, grouped attention, rotary positions, SwiGLU (Qwen2.5, arXiv 2412.15115; Llama-2, 2307.09288).

It takes embeddings, so that images, proprio and readouts can stand between words, and whatever
attention mask the caller makes.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from octo_integration.model.attention import Attention
from octo_integration.model.blocks import run_blocks
from octo_integration.model.config import Build, LanguageConfig
from octo_integration.model.dense import dense
from octo_integration.model.partition import by_example

EMBED_INIT = nn.initializers.normal(0.02)


class SwiGlu(nn.Module):
    """down(silu(gate(x)) * up(x)) (arXiv 2002.05202)."""

    hidden: int
    build: Build

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, N, W] -> [B, N, W]."""
        project = functools.partial(dense, self.build, bias=False)
        gate, up = project(self.hidden, "gate")(x), project(self.hidden, "up")(x)
        return project(x.shape[-1], "down")(nn.silu(gate) * up)


class Block(nn.Module):
    """x + attn(norm1(x)), then x + mlp(norm2(x))."""

    config: LanguageConfig
    build: Build

    @nn.compact
    def __call__(self, x: jax.Array, positions: jax.Array, mask: jax.Array) -> tuple[jax.Array, None]:
        """As `Decoder`, in the form that `run_blocks` takes."""
        config, build = self.config, self.build
        norm = functools.partial(nn.RMSNorm, epsilon=config.norm_eps, dtype=jnp.float32)
        attention = Attention(
            config.heads, config.kv_heads, config.qkv_bias, False, config.rope_theta, build, name="attn"
        )
        x = by_example(x + attention(norm(name="norm1")(x), positions, mask))
        return by_example(x + SwiGlu(config.mlp, build, name="mlp")(norm(name="norm2")(x))), None


class Decoder(nn.Module):
    """The language model in parts: embed, run, and (in pretraining) read the next token."""

    config: LanguageConfig
    build: Build

    def setup(self) -> None:
        """Makes what more than one method uses."""
        config = self.config
        if config.vocabulary:
            self.embed = nn.Embed(config.vocabulary, config.width, embedding_init=EMBED_INIT, dtype=self.build.dtype)
        if not config.tied:
            self.lm_head = dense(self.build, config.vocabulary, None, bias=False)
        self.norm = nn.RMSNorm(config.norm_eps, dtype=jnp.float32)

    @nn.compact
    def __call__(self, x: jax.Array, positions: jax.Array, mask: jax.Array) -> jax.Array:
        """[B, N, W] embeddings, int[B, N], bool[B, N, N] of `blockwise_mask` -> [B, N, W]."""
        starting = self.is_initializing()
        x = run_blocks(Block, self.config, self.build, x, positions, mask, initializing=starting)
        x = self.norm(x).astype(self.build.dtype)
        if starting and not self.config.tied:  # an action head does not read it, but it is part of the weights
            self.lm_head(x)
        return x

    def words(self, tokens: jax.Array) -> jax.Array:
        """int32[B, L] -> [B, L, W] embeddings."""
        return by_example(self.embed(tokens))

    def logits(self, x: jax.Array) -> jax.Array:
        """[B, L, W] outputs -> f32[B, L, vocabulary], through the embedding if the head is tied."""
        logits = self.embed.attend(x) if self.config.tied else self.lm_head(x)
        return logits.astype(jnp.float32)
