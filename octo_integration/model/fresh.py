"""What fine-tuning adds at the decoder's input: readouts, proprio tokens, and which image a patch is of."""

import flax.linen as nn
import jax

TOKEN_INIT = nn.initializers.normal(0.02)


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


class ImageSource(nn.Module):
    """One learned vector per source of images, for every patch of them: the cameras, then the goal.

    All sources share towers and bridge, and a patch of one looks like a patch of another.
    """

    sources: int
    width: int
    dtype: str

    @nn.compact
    def __call__(self) -> jax.Array:
        """[sources, width]."""
        vectors = self.param("embedding", TOKEN_INIT, (self.sources, self.width))
        return vectors.astype(self.dtype)


class ProprioProjector(nn.Module):
    """The robot's own state as one token: fc2(gelu(fc1(state)))."""

    width: int
    dtype: str

    @nn.compact
    def __call__(self, proprio: jax.Array) -> jax.Array:
        """[..., P] normalised -> [..., width]."""
        x = nn.Dense(self.width, dtype=self.dtype, name="fc1")(proprio)
        return nn.Dense(self.width, dtype=self.dtype, name="fc2")(nn.gelu(x, approximate=False))
