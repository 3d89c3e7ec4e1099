"""The matrix product of every tower, bridge and decoder, with a low-rank adapter beside it where one is asked for."""

import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp

from octo_integration.model.config import Build, LoraConfig


class Dense(nn.DenseGeneral):
    """`nn.DenseGeneral`, and y + (alpha / rank) B A x where `lora` targets this kernel (arXiv 2106.09685).

    A is `lora_a` [inputs, rank], B is `lora_b` [rank, outputs], inputs and outputs flattened. B starts at zero, so an
    adapter changes nothing before it is trained.
    """

    lora: LoraConfig = LoraConfig()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., inputs] -> [..., features], as `nn.DenseGeneral`."""
        y = super().__call__(x)
        if not self._adapted():
            return y
        axes = (self.axis,) if isinstance(self.axis, int) else tuple(self.axis)
        flat = x.reshape(*x.shape[: x.ndim - len(axes)], -1).astype(y.dtype)
        outputs = math.prod(y.shape[flat.ndim - 1 :])
        rank = self.lora.rank
        a = self.param("lora_a", nn.initializers.normal(flat.shape[-1] ** -0.5), (flat.shape[-1], rank), jnp.float32)
        b = self.param("lora_b", nn.initializers.zeros, (rank, outputs), jnp.float32)
        low = (flat @ a.astype(y.dtype)) @ b.astype(y.dtype)
        return y + (self.lora.alpha / rank) * low.reshape(y.shape)

    def _adapted(self) -> bool:
        path = "/".join((*self.path, "kernel"))
        return self.lora.rank > 0 and any(re.match(target, path) for target in self.lora.targets)


def dense(
    build: Build, features: int | tuple[int, ...], name: str | None, *, bias: bool = True, inputs: int = 1
) -> Dense:
    """A Dense over the last `inputs` axes, in the precision and with the adapters of `build`."""
    axes = tuple(range(-inputs, 0))
    return Dense(features, axis=axes, use_bias=bias, dtype=build.dtype, lora=build.lora, name=name)
