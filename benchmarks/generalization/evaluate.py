"""What the study measures of a model: action error per episode and condition, drift, what it still knows."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import maps_optax as mx
from benchmarks.generalization.data import Windows, conditions, load, load_frames, take
from benchmarks.generalization.train import SHARED, Inputs, inputs_of, observe
from octo_integration.model.sizes import CONFIGS
from octo_integration.model.tokenizer import load_words
from octo_integration.model.vla import VLA
from octo_integration.pretrain.frames_reader import Frames
from octo_integration.pretrain.loop import Corpus, PretrainConfig
from octo_integration.pretrain.objective import Batch
from octo_integration.pretrain.probes import retention

Tree = Any
Errors = dict[str, dict[str, list[float]]]

ROWS = 64
EVERY = 2  # of the probe frames
DIGITS = 5


class Held:
    """Held-out windows of one part ("dev" or "test") under every condition."""

    def __init__(self, out: Path, part: str, blind: bool = False, every: int = 4) -> None:
        """Reads one window in `every` of what `data.prepare` wrote: neighbours hardly differ."""
        self.windows: dict[str, Windows] = {}
        self.inputs: dict[str, Inputs] = {}
        for condition in conditions():
            split = load(out, part if condition == "none" else f"{part}_{condition}")
            kept = take(split, np.arange(0, len(split.text), every))
            self.windows[condition], self.inputs[condition] = kept, inputs_of(kept, blind)

    def errors(self, model: str, params: Tree) -> Errors:
        """condition -> task -> mean |predicted − demonstrated| of each episode, over real normalised actions.

        Args:
          model: name of a configuration; params: of it, without adapters.
        """
        return {
            condition: per_episode(windows, np.abs(predict(model, params, self.inputs[condition]) - windows.action))
            for condition, windows in self.windows.items()
        }

    def constant(self, train: Windows) -> Errors:
        """The errors of the best answer that looks at nothing but the task: the median chunk of its demonstrations."""
        medians = constant_chunks(train)
        whole = medians["all"]
        found = {}
        for condition, windows in self.windows.items():
            guess = np.stack([medians.get(str(name), whole) for name in windows.tasks])[windows.task]
            found[condition] = per_episode(windows, np.abs(guess - windows.action))
        return found


def constant_chunks(train: Windows) -> dict[str, np.ndarray]:
    """task -> f32[chunk, A], the median of its real actions, and "all", that of all tasks."""
    masked = np.where(train.mask, train.action, np.nan)
    found = {str(name): np.nanmedian(masked[train.task == i], axis=0) for i, name in enumerate(train.tasks)}
    return {**found, "all": np.nanmedian(masked, axis=0)}


def per_episode(windows: Windows, error: np.ndarray) -> dict[str, list[float]]:
    """task -> the mean of f32[N, chunk, A] over the real entries of each episode."""
    total = np.bincount(windows.episode, (error * windows.mask).sum((1, 2)))
    count = np.bincount(windows.episode, windows.mask.sum((1, 2)))
    owner = np.zeros(len(total), int)
    owner[windows.episode] = windows.task
    there = count > 0
    return {
        str(name): (total[there & (owner == i)] / count[there & (owner == i)]).round(DIGITS).tolist()
        for i, name in enumerate(windows.tasks)
    }


def predict(model: str, params: Tree, inputs: Inputs) -> np.ndarray:
    """f32[N, chunk, A], normalised; inputs on the host. Always ROWS at once, so that it compiles once."""
    count, run = len(inputs.text), forward(model)
    index = np.minimum(np.arange(-(-count // ROWS) * ROWS), count - 1).reshape(-1, ROWS)
    return np.concatenate([np.asarray(run(params, _rows(inputs, rows))) for rows in index])[:count]


def _rows(inputs: Inputs, rows: np.ndarray) -> Inputs:
    text = inputs.text[rows]
    return Inputs(inputs.image[rows], inputs.tokens[text], inputs.token_mask[text], np.arange(len(rows)))


@functools.cache
def forward(name: str) -> Any:
    """(params without adapters, inputs of B windows) -> f32[B, chunk, A], normalised; jitted."""
    model = VLA(CONFIGS[name])

    @jax.jit
    def run(params: Tree, inputs: Inputs) -> Any:
        return model.apply({"params": params}, *observe(inputs, jnp.arange(len(inputs.image))))

    return run


def drift(params: Tree, theta0: Tree) -> tuple[dict[str, float], dict[str, float]]:
    """(‖θ − θ0‖, ‖θ − θ0‖ / ‖θ0‖) of every layer, in the order of the stack."""
    moved, size = (_norms(tree) for tree in (jax.tree.map(jnp.subtract, params, theta0), theta0))
    return moved, {name: moved[name] / size[name] for name in moved}


def _norms(tree: Tree) -> dict[str, float]:
    leaves = {"/".join(str(k.key) for k in path): x for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]}
    squares: dict[tuple[int, str], float] = {}
    for row in mx.slices(mx.presets.vla(), tree):
        if row.position is not None:
            leaf = np.asarray(leaves[row.path])
            part = leaf if row.row is None else leaf[row.row]
            key = row.position, "/".join(filter(None, (row.module, row.block)))
            squares[key] = squares.get(key, 0.0) + float(np.square(part, dtype=np.float64).sum())
    return {name: square**0.5 for (_, name), square in sorted(squares.items())}


class Probes:
    """What pretraining taught, asked again: see `pretrain_probes.retention`."""

    def __init__(self, out: Path) -> None:
        """Reads the probe frames, which pretraining never saw: one half fits the linear probes, the other is asked."""
        frames = load_frames(out).take(slice(0, None, EVERY))
        half, words = len(frames) // 2, load_words(SHARED.tokenizer)
        parts = frames.take(slice(half)), frames.take(slice(half, None))
        self._fitted, self._asked = (Corpus(part, PretrainConfig.text_length, words) for part in parts)

    def measure(self, model: str, params: Tree) -> Mapping[str, float]:
        """Localisation in centimetres and perplexity of answers, as `pretrain_probes.retention`."""

        def batches(part: Frames, kind: str, index: np.ndarray) -> Batch:
            return (self._fitted if part is self._fitted.frames else self._asked).batch(index, kind)

        return retention(VLA(CONFIGS[model]), params, self._fitted.frames, self._asked.frames, batches)
