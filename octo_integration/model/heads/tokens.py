"""Actions as classes: per dimension a softmax over uniform bins (RT-1, arXiv 2212.06817; Octo, OpenVLA)."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from octo_integration.model.heads import HeadConfig
from octo_integration.model.heads.common import OUTPUT_INIT, ActionHead, Metrics, masked_mean


def encode(action: jax.Array, bins: int, limit: float) -> jax.Array:
    """The bins of float[...] actions: int32[...] in 0..bins - 1; what is beyond ±limit falls into the last ones."""
    place = jnp.floor((action + limit) / (2 * limit) * bins)
    return jnp.clip(place, 0, bins - 1).astype(jnp.int32)


def decode(tokens: jax.Array, bins: int, limit: float) -> jax.Array:
    """The centres of int[...] bins: f32[...]."""
    return ((tokens + 0.5) / bins * 2 - 1).astype(jnp.float32) * limit


@dataclasses.dataclass(frozen=True)
class TokensConfig(HeadConfig):
    """Knobs.

    Attributes:
      bins: classes per action dimension.
      temperature: 0: the likeliest class is taken; above: classes are drawn, the flatter the higher.
      limit: the bins span normalised actions within ±limit.
    """

    bins: int = 256
    temperature: float = 0.0
    limit: float = 5.0

    def make(self, action_dim: int, dtype: str) -> "TokensHead":
        """The head with these knobs."""
        return TokensHead(self, action_dim, dtype)


class TokensHead(ActionHead):
    """One class per entry of the chunk, all at once from its readout."""

    config: TokensConfig

    def loss(self, x: jax.Array, action: jax.Array, mask: jax.Array, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """The cross-entropy; logs the share of entries whose likeliest bin is the right one."""
        logits, wanted = self(x), encode(action, self.config.bins, self.config.limit)
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, wanted)
        right = (logits.argmax(-1) == wanted).astype(jnp.float32)
        return masked_mean(entropy, mask), {"accuracy": masked_mean(right, mask)}

    def predict(self, x: jax.Array, key: jax.Array) -> jax.Array:
        """f32[B, chunk, A]: centres of the likeliest bins, or of drawn ones where the temperature is above 0."""
        config, logits = self.config, self(x)
        if config.temperature > 0:
            chosen = jax.random.categorical(key, logits / config.temperature)
        else:
            chosen = logits.argmax(-1)
        return decode(chosen, config.bins, config.limit)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, chunk, W] readouts -> f32[B, chunk, A, bins] logits."""
        norm = nn.LayerNorm(dtype=jnp.float32, name="norm")
        out = nn.DenseGeneral(
            (self.action_dim, self.config.bins), kernel_init=OUTPUT_INIT, dtype=jnp.float32, name="out"
        )
        return out(norm(x))
