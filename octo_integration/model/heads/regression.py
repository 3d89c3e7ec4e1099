"""Actions by regression, an MLP on every readout, as OpenVLA-OFT (arXiv 2502.19645)."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from octo_integration.model.heads import HeadConfig
from octo_integration.model.heads.common import OUTPUT_INIT, ActionHead, Metrics, masked_mean


@dataclasses.dataclass(frozen=True)
class L1Config(HeadConfig):
    """Knobs.

    Attributes:
      hidden: width of the hidden layers.
    """

    hidden: int = 256

    def make(self, action_dim: int, dtype: str) -> "L1Head":
        """The head with these knobs."""
        return L1Head(self, action_dim, dtype)


class L1Head(ActionHead):
    """Predicts the median: the loss is the mean absolute error."""

    config: L1Config

    def loss(self, x: jax.Array, action: jax.Array, mask: jax.Array, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """The mean absolute error; nothing to log beside it."""
        return masked_mean(jnp.abs(self(x) - action), mask), {}

    def predict(self, x: jax.Array, key: jax.Array) -> jax.Array:
        """f32[B, chunk, A]; draws nothing."""
        return self(x)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, chunk, W] readouts -> f32[B, chunk, A], normalised."""
        dense = functools.partial(nn.Dense, dtype=self.dtype)
        norm = functools.partial(nn.LayerNorm, dtype=jnp.float32)
        hidden = self.config.hidden
        x = nn.relu(dense(hidden, name="fc1")(norm(name="norm1")(x)))
        x = x + nn.relu(dense(hidden, name="fc2")(norm(name="norm2")(x)))
        out = nn.Dense(self.action_dim, kernel_init=OUTPUT_INIT, dtype=jnp.float32, name="out")
        return out(norm(name="norm3")(x))
