"""Actions by denoising the whole chunk, as Octo (arXiv 2405.12213, 2304.10573): DDPM and DDIM.

Step t = 0, ..., steps - 1 of the forward process mixes actions and noise, x_t = sqrt(a_t) x + sqrt(1 - a_t) n, with the
cosine schedule (arXiv 2102.09672). The network sees x_t, t and the mean of the readouts and predicts n. Sampling goes
back from pure noise, one step of the network each; see `backward`.
"""

import dataclasses
import functools
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from octo_integration.model.heads import HeadConfig
from octo_integration.model.heads.common import OUTPUT_INIT, ActionHead, Metrics, masked_mean

# Of the cosine schedule: its offset, and the largest share of noise that one step adds.
OFFSET, LARGEST = 0.008, 0.999
TIME_FEATURES = 32
TIME_INIT = nn.initializers.normal(0.2)
# Of the hidden layer of a residual block, times its width.
EXPANSION = 4
# Noise drawn on the way back, in units of the standard deviation of x_{t-1} given x_t and x.
ETA = {"ddpm": 1.0, "ddim": 0.0}


@dataclasses.dataclass(frozen=True)
class DiffusionConfig(HeadConfig):
    """Knobs.

    Attributes:
      hidden: width of the denoising network's layers.
      blocks: its residual layers.
      steps: of denoising.
      sampler: ddpm: stochastic, all steps; ddim: deterministic from the first noise on.
      limit: normalised actions are kept within ±limit.
    """

    hidden: int = 256
    blocks: int = 3
    steps: int = 20
    sampler: Literal["ddpm", "ddim"] = "ddpm"
    limit: float = 5.0

    def make(self, action_dim: int, dtype: str) -> "DiffusionHead":
        """The head with these knobs."""
        return DiffusionHead(self, action_dim, dtype)


def alphas(steps: int) -> np.ndarray:
    """a_t of the cosine schedule, the share of the actions' variance in x_t: f64[steps], falling."""
    angle = (np.arange(steps + 1) / steps + OFFSET) / (1 + OFFSET) * np.pi / 2
    share = np.cos(angle) ** 2
    return np.cumprod(1 - np.minimum(1 - share[1:] / share[:-1], LARGEST))


def forward(x: jax.Array, noise: jax.Array, alpha: jax.Array) -> jax.Array:
    """x_t of actions and noise."""
    return jnp.sqrt(alpha) * x + jnp.sqrt(1 - alpha) * noise


def denoised(x_t: jax.Array, noise: jax.Array, alpha: jax.Array) -> jax.Array:
    """The actions of which `forward` made x_t with this noise."""
    return (x_t - jnp.sqrt(1 - alpha) * noise) / jnp.sqrt(alpha)


def backward(
    x_t: jax.Array, x: jax.Array, drawn: jax.Array, alpha: jax.Array, before: jax.Array, eta: float
) -> jax.Array:
    """x_{t-1} from x_t and an estimate x of the actions (arXiv 2010.02502, eq. 12).

    eta = 1 draws from the exact posterior of the forward process (DDPM, arXiv 2006.11239, eq. 6 and 7), eta = 0 draws
    nothing (DDIM).

    Args:
      drawn: standard normal, the shape of x_t.
      alpha, before: a_t and a_{t-1}; before = 1 ends with x itself.
    """
    noise = (x_t - jnp.sqrt(alpha) * x) / jnp.sqrt(1 - alpha)
    variance = eta**2 * (1 - before) / (1 - alpha) * (1 - alpha / before)
    return jnp.sqrt(before) * x + jnp.sqrt(1 - before - variance) * noise + jnp.sqrt(variance) * drawn


class ResidualBlock(nn.Module):
    """x + fc2(swish(fc1(norm(x))))."""

    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, W] -> [B, W]."""
        dense = functools.partial(nn.Dense, dtype=self.dtype)
        y = nn.LayerNorm(dtype=jnp.float32, name="norm")(x)
        y = nn.swish(dense(EXPANSION * x.shape[-1], name="fc1")(y))
        return x + dense(x.shape[-1], name="fc2")(y)


class Denoiser(nn.Module):
    """The noise in a noisy chunk: an MLP with residual blocks on chunk, time and condition side by side."""

    hidden: int
    blocks: int
    dtype: str

    @nn.compact
    def __call__(self, x_t: jax.Array, time: jax.Array, condition: jax.Array) -> jax.Array:
        """f32[B, D] noisy actions, f32[B] their step, [B, W] -> f32[B, D]."""
        dense = functools.partial(nn.Dense, dtype=self.dtype)
        rate = self.param("frequencies", TIME_INIT, (TIME_FEATURES // 2,))
        angle = 2 * jnp.pi * time[:, None] * rate
        t = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
        t = dense(TIME_FEATURES, name="time2")(nn.swish(dense(2 * TIME_FEATURES, name="time1")(t)))
        x = jnp.concatenate([t, condition.astype(t.dtype), x_t.astype(t.dtype)], axis=-1)
        x = dense(self.hidden, name="in")(x)
        for i in range(self.blocks):
            x = ResidualBlock(self.dtype, name=f"block_{i}")(x)
        out = nn.Dense(x_t.shape[-1], kernel_init=OUTPUT_INIT, dtype=jnp.float32, name="out")
        return out(nn.swish(x))


class DiffusionHead(ActionHead):
    """Draws chunks from the distribution of the demonstrated ones."""

    config: DiffusionConfig

    def setup(self) -> None:
        """Makes the network."""
        self.denoiser = Denoiser(self.config.hidden, self.config.blocks, self.dtype)

    def loss(self, x: jax.Array, action: jax.Array, mask: jax.Array, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """The mean squared error of the noise at a random step; logs the error of the actions that it implies."""
        rows, limit = len(action), self.config.limit
        clean = jnp.clip(action, -limit, limit).reshape(rows, -1)
        keys = jax.random.split(key)
        time = jax.random.randint(keys[0], (rows,), 0, self.config.steps)
        noise = jax.random.normal(keys[1], clean.shape)
        alpha = jnp.asarray(alphas(self.config.steps), jnp.float32)[time][:, None]
        x_t = forward(clean, noise, alpha)
        guess = self.denoiser(x_t, time.astype(jnp.float32), x.mean(1))
        error = jnp.abs(jnp.clip(denoised(x_t, guess, alpha), -limit, limit) - clean)
        counts = mask.reshape(rows, -1)
        return masked_mean(jnp.square(guess - noise), counts), {"denoised_l1": masked_mean(error, counts)}

    def predict(self, x: jax.Array, key: jax.Array) -> jax.Array:
        """f32[B, chunk, A] drawn with `key`, within ±limit."""
        config, (rows, chunk, _) = self.config, x.shape
        condition, shape = x.mean(1), (rows, chunk * self.action_dim)
        alpha = alphas(config.steps)
        before = np.concatenate([[1.0], alpha[:-1]])

        def step(denoiser: Denoiser, x_t: jax.Array, now: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
            time, alpha, before, key = now
            noise = denoiser(x_t, jnp.full(rows, time), condition)
            clean = jnp.clip(denoised(x_t, noise, alpha), -config.limit, config.limit)
            drawn = jax.random.normal(key, shape)
            return backward(x_t, clean, drawn, alpha, before, ETA[config.sampler]), None

        first, *keys = jax.random.split(key, config.steps + 1)
        times = [jnp.asarray(v[::-1], jnp.float32) for v in (np.arange(config.steps), alpha, before)]
        loop = nn.scan(step, variable_broadcast="params", split_rngs={"params": False})
        clean, _ = loop(self.denoiser, jax.random.normal(first, shape), (*times, jnp.stack(keys)))
        return clean.reshape(rows, chunk, self.action_dim)
