"""What pretraining gave, measured on held-out frames beside the random start.

Localisation: ridge regression from all patch features of a tower to positions, as a linear probe.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from octo_integration.model.vla import VLA
from octo_integration.pretrain.frames_reader import Frames
from octo_integration.pretrain.objective import CENTRE, SPREAD, Batch, answer_loss, run_heads, run_model
from octo_integration.pretrain.text import KINDS

Tree = Any
Probes = dict[str, float]
Batches = Callable[[Frames, str, np.ndarray], Batch]

ROWS = 64
FITTED = 2000
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)
POINTS = ("hand", "object")


def retention(vla: VLA, params: Tree, train: Frames, heldout: Frames, batches: Batches) -> Probes:
    """Measures a model's parameters alone, so that it can be asked again after fine-tuning.

    Args:
      train: frames that the linear probes are fitted on.
      heldout: at least ROWS frames that training has not seen.
      batches: (frames, kind of question, indices) -> the device batch.

    Returns:
      {tower}_{point}_cm: mean distance between probed and true position;
      perplexity_{kind}: per token of the answers.
    """
    look = functools.partial(_features, vla, params)
    spread = np.linspace(0, len(train) - 1, min(FITTED, len(train)))
    fitted = train.take(spread.astype(int))
    known, new = look(fitted.image), look(heldout.image)
    found: Probes = {}
    for tower in known:
        for point in POINTS:
            truth = getattr(heldout, point)
            guess = ridge(known[tower], getattr(fitted, point), new[tower])
            found[f"{tower}_{point}_cm"] = centimetres(guess - truth)
    for kind in KINDS:
        found[f"perplexity_{kind}"] = _perplexity(vla, params, heldout, batches, kind, 0)
    return found


def probe(vla: VLA, params: Tree, train: Frames, heldout: Frames, batches: Batches) -> Probes:
    """Measures {"model": ..., "heads": ...}; arguments as of `retention`.

    Returns:
      What `retention` does, and
      mean_{point}_cm: mean distance to a guess that sees nothing; head_{point}_cm: of the pretraining head's, which
      reads the DINOv2-kind tower where there is one;
      retrieval: share of images whose caption is the nearest among ROWS;
      perplexity_{kind}_other_image: given another frame.
    """
    found = retention(vla, params["model"], train, heldout, batches)
    for point in POINTS:
        mean = getattr(train, point).mean(0)
        found[f"mean_{point}_cm"] = centimetres(mean - getattr(heldout, point))
    if "dinov2" in vla.config.towers:
        found |= _placed(vla, params, heldout, batches)
    found["retrieval"] = _retrieval(vla, params, heldout, batches)
    for kind in KINDS:
        found[f"perplexity_{kind}_other_image"] = _perplexity(vla, params["model"], heldout, batches, kind, 1)
    return found


def _groups(count: int) -> Iterator[np.ndarray]:
    """Full groups of ROWS, far apart on disk, where neighbours are of one episode."""
    step = count // ROWS
    for first in range(step):
        yield first + step * np.arange(ROWS)


def _features(vla: VLA, params: Tree, images: np.ndarray) -> dict[str, np.ndarray]:
    padded = np.concatenate([images, np.repeat(images[-1:], -len(images) % ROWS, axis=0)])
    parts = [_towers(vla, params, padded[i : i + ROWS]) for i in range(0, len(padded), ROWS)]
    joined = {name: np.concatenate([np.asarray(p[name]) for p in parts])[: len(images)] for name in parts[0]}
    return {name: x.reshape(len(x), -1) for name, x in joined.items()}


@functools.partial(jax.jit, static_argnums=0)
def _towers(vla: VLA, params: Tree, images: jax.Array) -> Any:
    def features(vla: VLA, images: jax.Array) -> dict[str, jax.Array]:
        return {name: getattr(vla, name)(images) for name in vla.config.towers}

    return vla.apply({"params": params}, images, method=features)


def ridge(x: np.ndarray, y: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Ridge regression in its dual form; every fifth row chooses among RIDGES."""
    chosen = np.arange(len(x)) % 5 == 0
    mean, target = x.mean(0), y.mean(0)
    scale = np.square(x - mean).sum(1).mean()

    def solve(rows: np.ndarray, ridge: float, at: np.ndarray) -> np.ndarray:
        kernel = (x[rows] - mean) @ (x[rows] - mean).T / scale
        weights = np.linalg.solve(kernel + ridge * np.eye(len(kernel)), y[rows] - target)
        return (at - mean) @ (x[rows] - mean).T / scale @ weights + target

    errors = [centimetres(solve(~chosen, ridge, x[chosen]) - y[chosen]) for ridge in RIDGES]
    return solve(np.full(len(x), True), RIDGES[int(np.argmin(errors))], new)


def centimetres(error: np.ndarray) -> float:
    """The mean length of f[N, 3] metres."""
    return float(100 * np.linalg.norm(error, axis=-1).mean())


def _placed(vla: VLA, params: Tree, frames: Frames, batches: Batches) -> Probes:
    groups = list(_groups(len(frames)))
    guess = np.concatenate([_places(vla, params, batches(frames, "caption", g)) for g in groups])
    shown = frames.take(np.concatenate(groups))
    return {f"head_{point}_cm": centimetres(guess[:, k] - getattr(shown, point)) for k, point in enumerate(POINTS)}


@functools.partial(jax.jit, static_argnums=0)
def _places(vla: VLA, params: Tree, batch: Batch) -> jax.Array:
    """f32[ROWS, points, 3] in metres."""
    seen = run_model(vla, params["model"], jnp.asarray(batch.image), None, batch)
    out = run_heads(params["heads"], seen, batch.words)
    return out["points"] * SPREAD + jnp.asarray(CENTRE)


def _retrieval(vla: VLA, params: Tree, frames: Frames, batches: Batches) -> float:
    found = [_hits(vla, params, batches(frames, "caption", g)) for g in _groups(len(frames))]
    return float(np.mean(found))


@functools.partial(jax.jit, static_argnums=0)
def _hits(vla: VLA, params: Tree, batch: Batch) -> jax.Array:
    """bool[ROWS]: whose own caption is the nearest."""
    seen = run_model(vla, params["model"], jnp.asarray(batch.image), None, batch)
    out = run_heads(params["heads"], seen, batch.words)
    return (out["image"] @ out["text"].T).argmax(1) == jnp.arange(ROWS)


def _perplexity(vla: VLA, params: Tree, frames: Frames, batches: Batches, kind: str, shift: int) -> float:
    groups = _groups(len(frames))
    sums = [_losses(vla, params, batches(frames, kind, group), shift) for group in groups]
    total, count = np.sum(jax.device_get(sums), axis=0)
    return float(np.exp(total / count))


@functools.partial(jax.jit, static_argnums=0)
def _losses(vla: VLA, params: Tree, batch: Batch, shift: int) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy and tokens of all answers, where each is given the image `shift` rows on."""
    images = jnp.roll(batch.image, shift, axis=0)
    seen = run_model(vla, params, images, None, batch)
    total, count = answer_loss(seen.logits, batch.targets)
    return total.sum(), count.sum()
