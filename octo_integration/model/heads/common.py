"""What the heads share: their form, the first value of their last layer, the masked mean."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from octo_integration.model.heads import HeadConfig

# Small, so that the first actions are near the mean of the data, but every layer has a gradient.
OUTPUT_INIT = nn.initializers.normal(0.01)

Metrics = dict[str, jax.Array]


class ActionHead(nn.Module):
    """The form of every head; see the package."""

    config: HeadConfig
    action_dim: int
    dtype: str

    def loss(self, x: jax.Array, action: jax.Array, mask: jax.Array, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """What to minimise, and what to log."""
        raise NotImplementedError

    def predict(self, x: jax.Array, key: jax.Array) -> jax.Array:
        """f32[B, chunk, A], normalised."""
        raise NotImplementedError


def masked_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean of f32[...] over the entries that bool[...] names; 0 where it names none."""
    return (values * mask).sum() / jnp.maximum(mask.sum(), 1)
