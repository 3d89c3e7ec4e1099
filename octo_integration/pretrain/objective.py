"""What pretraining minimises, with the heads that only serve to ask for it.

* DINOv2-kind tower: attention pools find hand, object and coloured shapes (cross-entropy of the patches they are in)
  and regress the places of hand, object and goal, from two views of a frame; views of one frame are told
  from those of others (InfoNCE, arXiv 1807.03748).
* SigLIP- or CLIP-kind tower: sigmoid contrastive loss between frames and captions (arXiv 2303.15343).
* Language: next token of the answers, given the frame through the bridge, which trains all of it.

A model without a DINOv2-kind tower, of one CLIP-kind tower, learns the last two alone.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from octo_integration.model.attention import blockwise_mask
from octo_integration.model.sequence import token_positions
from octo_integration.model.vla import VLA
from octo_integration.pretrain.text import NO_TARGET, PADDING_TIME, WORD_BUCKETS

Tree = Any
Array: TypeAlias = jax.Array | np.ndarray

IMAGE_TIME = 0
PIXEL_POINTS = 2  # hand and object
POINTS = 3  # ... and goal
EMBEDDING = 64
TEMPERATURE = 0.1
# Initial logit scale (its logarithm), as SigLIP, and bias: about -log of the other captions in a
# batch of 32, so that the first loss is that of a guess.
LOG_SCALE, BIAS = 2.3, -3.5

# Of positions in metres and of pixels as fractions: both spread by about 0.1.
CENTRE, SPREAD = (0.0, 0.67, 0.16), 0.1

# Weights of the parts of the loss.
WEIGHTS = {"patch": 0.3, "shapes": 0.2, "place": 1.0, "views": 0.2, "text": 0.3, "answer": 1.0}


class Batch(NamedTuple):
    """One batch of B frames, on the host or the device.

    Attributes:
      image: uint8[B, H, W, 3].
      points: f32[B, POINTS, 3] metres: hand, object, goal.
      pixels: f32[B, PIXEL_POINTS, 2] column and row as fractions.
      shapes: f32[B, 3, 2] those of coloured shapes, zeros where there are none.
      words: int32[B, W] of `bags_of_words`.
      tokens, times, targets: int32[B, L] of `dialogues`.
    """

    image: Array
    points: Array
    pixels: Array
    shapes: Array
    words: Array
    tokens: Array
    times: Array
    targets: Array


class Heads(nn.Module):
    """Everything that pretraining throws away at its end."""

    @nn.compact
    def __call__(self, dino: jax.Array | None, captioned: jax.Array, words: jax.Array) -> dict[str, jax.Array]:
        """Patch features [2 B, N, W] (two views, one after the other), [B, N, W], bags of words."""
        return {**({} if dino is None else self._places(dino)), **self._captions(captioned, words)}

    def _places(self, dino: jax.Array) -> dict[str, jax.Array]:
        attention = nn.Dense(POINTS + 2, name="attention")(dino)
        share = nn.softmax(attention[..., : POINTS + 1], axis=1)
        pooled = jnp.einsum("bnk,bnw->bkw", share, dino)
        # Where each pool looks, in the units of the targets: what is left to regress is small.
        at = (jnp.einsum("bnk,nc->bkc", share, patch_centres(dino.shape[1])) - 0.5) / SPREAD
        placed = jnp.concatenate([pooled, at], axis=-1)
        return {
            "attention": attention,
            "points": jnp.stack([nn.Dense(3, name=f"place{k}")(placed[:, k]) for k in range(POINTS)], axis=1),
            "pixels": jnp.stack(
                [at[:, k] + nn.Dense(2, name=f"pixel{k}")(pooled[:, k]) for k in range(PIXEL_POINTS)],
                axis=1,
            ),
            "view": _unit(nn.Dense(EMBEDDING, name="view")(pooled[:, POINTS])),
        }

    def _captions(self, features: jax.Array, words: jax.Array) -> dict[str, jax.Array]:
        look = nn.Dense(1, name="look")(features)
        image = jnp.einsum("bnk,bnw->bw", nn.softmax(look, axis=1), features)
        bag = nn.Embed(WORD_BUCKETS, 2 * EMBEDDING, name="words")(words)
        text = (bag * (words > 0)[..., None]).sum(1)
        text = nn.Dense(EMBEDDING, name="text")(nn.gelu(nn.LayerNorm(name="text_norm")(text)))
        return {
            "image": _unit(nn.Dense(EMBEDDING, name="image")(image)),
            "text": _unit(text),
            "scale": self.param("scale", nn.initializers.constant(LOG_SCALE), ()),
            "bias": self.param("bias", nn.initializers.constant(BIAS), ()),
        }


def patch_centres(count: int) -> np.ndarray:
    """Column and row of the patches of a square image, as fractions of it: f32[count, 2]."""
    side = round(count**0.5)
    row, column = np.divmod(np.arange(count), side)
    return ((np.stack([column, row], axis=1) + 0.5) / side).astype(np.float32)


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.sqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-6)


class Seen(NamedTuple):
    """What the model makes of a batch: features of the tower for geometry and of that for captions, logits."""

    dino: jax.Array | None
    captioned: jax.Array
    logits: jax.Array


def see(vla: VLA, view: jax.Array, second: jax.Array | None, batch: Batch) -> Seen:
    """For `VLA.apply(method=see)`: `second` goes through the DINOv2-kind tower only."""
    towers = vla.config.towers
    both = view if second is None else jnp.concatenate([view, second])
    dino = vla.dinov2(both) if "dinov2" in towers else None
    captioned = vla.siglip(view) if "siglip" in towers else vla.clip(view)
    return Seen(dino, captioned, say(vla, [*([] if dino is None else [dino[: len(view)]]), captioned], batch))


def say(vla: VLA, features: Sequence[jax.Array], batch: Batch) -> jax.Array:
    """f32[B, L, vocabulary], for `VLA.apply`: what follows each of the batch's tokens, given the towers' features."""
    patches = vla.bridge(*features)
    x = jnp.concatenate([patches, vla.language.words(jnp.asarray(batch.tokens))], axis=1)
    seen = jnp.ones(patches.shape[:2], bool)
    valid = jnp.concatenate([seen, batch.times != PADDING_TIME], axis=1)
    times = jnp.concatenate([jnp.full(seen.shape, IMAGE_TIME), batch.times], axis=1)
    x = vla.language(x, token_positions(valid), blockwise_mask(times, valid))
    logits: jax.Array = vla.language.logits(x[:, patches.shape[1] :])
    return logits


def run_model(vla: VLA, params: Tree, view: jax.Array, second: jax.Array | None, batch: Batch) -> Seen:
    """`see` with the model's parameters."""
    seen: Any = vla.apply({"params": params}, view, second, batch, method=see)
    return seen


def run_heads(params: Tree, seen: Seen, words: Array) -> dict[str, jax.Array]:
    """`Heads` on what the model saw."""
    out: Any = Heads().apply({"params": params}, seen.dino, seen.captioned, words)
    return out


def answer_loss(logits: jax.Array, targets: Array) -> tuple[jax.Array, jax.Array]:
    """(sum of the cross-entropy over each row's answer, number of its tokens): f32[B], int32[B]."""
    targets = jnp.asarray(targets)
    asked = targets != NO_TARGET
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(asked, targets, 0))
    return (entropy * asked).sum(1), asked.sum(1)


def objective(vla: VLA, params: Tree, batch: Batch, key: jax.Array) -> tuple[jax.Array, Tree]:
    """The loss f32[] of {"model": ..., "heads": ...} on a batch, and its parts by name."""
    keys = jax.random.split(key)
    images = jnp.asarray(batch.image, jnp.float32)
    view, second = mild_view(images, keys[0]), strong_view(images, keys[1])
    seen = run_model(vla, params["model"], view, second, batch)
    out = run_heads(params["heads"], seen, batch.words)
    total, count = answer_loss(seen.logits, batch.targets)
    parts = {
        **({} if seen.dino is None else _geometry(out, batch)),
        "text": _sigmoid_loss(out["image"] @ out["text"].T, out["scale"], out["bias"]),
        "answer": total.sum() / count.sum(),
    }
    return jnp.stack([WEIGHTS[name] * part for name, part in parts.items()]).sum(), parts


def _geometry(out: dict[str, jax.Array], batch: Batch) -> dict[str, jax.Array]:
    """The parts of the loss that the DINOv2-kind tower learns from."""
    twice = [jnp.concatenate([x, x]) for x in (batch.points, batch.pixels)]
    points = (twice[0] - jnp.asarray(CENTRE)) / SPREAD
    place = jnp.abs(out["points"] - points).mean()
    pixel = jnp.abs(out["pixels"] - (twice[1] - 0.5) / SPREAD).mean()
    return {
        "patch": _patch_loss(out["attention"][..., :PIXEL_POINTS], twice[1]).mean(),
        "shapes": _shape_loss(out["attention"][..., -1:], batch.shapes),
        "place": place + pixel,
        "views": _view_loss(*jnp.split(out["view"], 2)),
    }


def _patch_loss(attention: jax.Array, pixels: jax.Array) -> jax.Array:
    """Cross-entropy between attention f32[B, N, K] over patches and the ones the points are in: f32[B, K]."""
    side = round(attention.shape[1] ** 0.5)
    column, row = jnp.moveaxis(jnp.clip((pixels * side).astype(jnp.int32), 0, side - 1), -1, 0)
    return optax.softmax_cross_entropy_with_integer_labels(attention.swapaxes(1, 2), row * side + column)


def _shape_loss(attention: jax.Array, shapes: Array) -> jax.Array:
    """Cross-entropy between attention f32[2 B, N, 1] and the patches of all shapes, over the frames that have any."""
    twice = jnp.concatenate([shapes, shapes])
    entropy = _patch_loss(jnp.repeat(attention, shapes.shape[1], axis=2), twice).mean(1)
    seen = (twice != 0).any((1, 2))
    return (entropy * seen).sum() / jnp.maximum(seen.sum(), 1)


def _view_loss(a: jax.Array, b: jax.Array) -> jax.Array:
    logits = a @ b.T / TEMPERATURE
    labels = jnp.arange(len(a))
    entropy = optax.softmax_cross_entropy_with_integer_labels
    return (entropy(logits, labels) + entropy(logits.T, labels)).mean() / 2


def _sigmoid_loss(similarity: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    signs = 2 * jnp.eye(len(similarity)) - 1
    logits = similarity * jnp.exp(scale) + bias
    return -jax.nn.log_sigmoid(signs * logits).sum(1).mean()


def mild_view(images: jax.Array, key: jax.Array) -> jax.Array:
    """Other brightness, contrast and noise; colours keep their names. f32[B, H, W, 3], 0..255."""
    shape = (len(images), 1, 1, 1)
    keys = jax.random.split(key, 3)
    contrast = jax.random.uniform(keys[0], shape, minval=0.85, maxval=1.15)
    brightness = jax.random.uniform(keys[1], shape, minval=-20.0, maxval=20.0)
    mean = images.mean((1, 2, 3), keepdims=True)
    noise = 4.0 * jax.random.normal(keys[2], images.shape)
    return jnp.clip((images - mean) * contrast + mean + brightness + noise, 0.0, 255.0)


def strong_view(images: jax.Array, key: jax.Array) -> jax.Array:
    """`mild_view` with mixed colour channels and one patch in eight grey: what stays is shape."""
    keys = jax.random.split(key, 3)
    mix = jnp.eye(3) + 0.35 * jax.random.normal(keys[0], (len(images), 3, 3))
    mixed = jnp.einsum("bhwc,bcd->bhwd", images - 128.0, mix) + 128.0
    cells = jax.random.bernoulli(keys[1], 1 / 8, (len(images), 8, 8, 1))
    gone = jnp.repeat(jnp.repeat(cells, images.shape[1] // 8, 1), images.shape[2] // 8, 2)
    return jnp.where(gone, 128.0, mild_view(jnp.clip(mixed, 0.0, 255.0), keys[2]))
