"""What fine-tuning adds to the pretrained stack: readouts, action head, proprio projector."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

TOKEN_INIT = nn.initializers.normal(0.02)
# Small, so that the first actions are near the mean of the data, but every layer has a gradient.
OUTPUT_INIT = nn.initializers.normal(0.01)


class Readout(nn.Module):
    """One learned token per step of the action chunk."""

    chunk: int
    width: int
    dtype: str

    @nn.compact
    def __call__(self) -> jax.Array:
        """[chunk, width]."""
        tokens = self.param("embedding", TOKEN_INIT, (self.chunk, self.width))
        return tokens.astype(self.dtype)


class L1ActionHead(nn.Module):
    """Actions by regression, an MLP on every readout, as OpenVLA-OFT (arXiv 2502.19645)."""

    action_dim: int
    hidden: int
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, chunk, W] decoder outputs -> f32[B, chunk, action_dim], normalised."""
        dense = functools.partial(nn.Dense, dtype=self.dtype)
        norm = functools.partial(nn.LayerNorm, dtype=jnp.float32)
        x = nn.relu(dense(self.hidden, name="fc1")(norm(name="norm1")(x)))
        x = x + nn.relu(dense(self.hidden, name="fc2")(norm(name="norm2")(x)))
        out = nn.Dense(self.action_dim, kernel_init=OUTPUT_INIT, dtype=jnp.float32, name="out")
        return out(norm(name="norm3")(x))


class ProprioProjector(nn.Module):
    """The robot's own state as one token: fc2(gelu(fc1(state)))."""

    width: int
    dtype: str

    @nn.compact
    def __call__(self, proprio: jax.Array) -> jax.Array:
        """[..., P] normalised -> [..., width]."""
        x = nn.Dense(self.width, dtype=self.dtype, name="fc1")(proprio)
        return nn.Dense(self.width, dtype=self.dtype, name="fc2")(nn.gelu(x, approximate=False))
