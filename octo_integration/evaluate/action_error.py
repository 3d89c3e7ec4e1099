"""Action error: how far predicted action chunks are from the demonstrated ones, per task, with its uncertainty."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

Batch = Mapping[str, Any]
Predict = Callable[[Any, Batch, int], np.ndarray]

RESAMPLES = 1000


@dataclasses.dataclass(frozen=True)
class TaskError:
    """L1 error on the episodes of one task: mean over real action entries, and the number of episodes."""

    l1: float
    episodes: int


@dataclasses.dataclass(frozen=True)
class ActionError:
    """Mean absolute error of predicted action chunks on a set of demonstrations.

    Attributes:
      l1: in normalised action units, mean over the real entries of all chunks.
      se: standard error of `l1` by the bootstrap over episodes (frames of one episode are not independent).
      physical: f64[A], the same error in the dataset's own units, per action dimension; NaN where no episode has it.
      episodes: how many there were.
      tasks: instruction -> its error.
      episode_error, episode_count: f64[episodes], per episode the summed error and the number of real entries.
    """

    l1: float
    se: float
    physical: np.ndarray
    episodes: int
    tasks: dict[str, TaskError]
    episode_error: np.ndarray
    episode_count: np.ndarray


def action_error(
    predict: Predict,
    params: Any,
    batches: Iterable[Batch],
    unnormalise: Callable[[np.ndarray], np.ndarray],
) -> ActionError:
    """Measures the error of `params` on finite batches in the order of the episodes.

    Args:
      predict: (params, batch, number of the batch) -> f32[B, chunk, A], normalised action chunks; a head that draws
        follows the number, so the same parameters give the same error.
      batches: of `data.eval_batches`; the last may be short.
      unnormalise: normalised actions [..., A] -> the dataset's units, each dimension for itself.

    Raises:
      ValueError: no batch, or a prediction that is not finite.
    """
    sums: list[np.ndarray] = []
    counts: list[np.ndarray] = []
    physical = present = np.zeros(())
    texts: list[str] = []
    episodes: list[np.ndarray] = []
    for number, batch in enumerate(batches):
        predicted = predict(params, batch, number)
        # Before the last chunk, the present one, come the actions of earlier timesteps of the window.
        action, mask = (batch[name][:, -predicted.shape[1] :] for name in ("action", "action_pad_mask"))
        if not np.isfinite(predicted).all():
            raise ValueError("action_error: the model predicts NaN or inf; its checkpoint is of no use.")
        sums.append((np.abs(predicted - action) * mask).sum((1, 2)))
        counts.append(mask.sum((1, 2)))
        physical = physical + (np.abs(unnormalise(predicted) - unnormalise(action)) * mask).sum((0, 1))
        present = present + mask.sum((0, 1))
        texts += [str(text) for text in batch["task"]["instruction"]]
        episodes.append(batch["episode"])
    if not sums:
        raise ValueError("action_error: the split holds no frames; choose another split.")
    _, owner = np.unique(np.concatenate(episodes), return_inverse=True)
    error = np.bincount(owner, weights=np.concatenate(sums))
    count = np.bincount(owner, weights=np.concatenate(counts))
    task = np.asarray(texts)[[int(np.argmax(owner == e)) for e in range(len(error))]]
    total = count.sum()
    return ActionError(
        l1=float(error.sum() / total),
        se=_standard_error(error, count),
        physical=np.divide(physical, present, out=np.full(present.shape, np.nan), where=present > 0),
        episodes=len(error),
        tasks={
            str(name): TaskError(
                float(error[task == name].sum() / count[task == name].sum()), int((task == name).sum())
            )
            for name in sorted(set(task))
        },
        episode_error=error,
        episode_count=count,
    )


def _standard_error(error: np.ndarray, count: np.ndarray) -> float:
    """Spread of the mean under resampling of whole episodes (seeded: the same data give the same number)."""
    picks = np.random.default_rng(0).integers(len(error), size=(RESAMPLES, len(error)))
    return float((error[picks].sum(1) / count[picks].sum(1)).std())
