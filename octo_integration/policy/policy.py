"""A run directory as a policy: observation and instruction in, a chunk of actions in the robot's units out."""

import collections
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from octo_integration.data import read_statistics
from octo_integration.data.missing import says, shows
from octo_integration.data.statistics import MixtureStatistics
from octo_integration.policy.trained import Trained, load_run


class Entry(NamedTuple):
    """One entry of an observation: its values, or zeros where it is not present."""

    values: np.ndarray
    present: bool


class Policy:
    """Acts as a run learnt to, for `evaluate.rollout` or a robot; `looks_back` is how many moments it looks back.

    An observation is of one moment and not normalised: {"image_<camera>": uint8[H, W, 3], upright, "proprio": f32[P] in
    the data set's units, "goal": uint8[H, W, 3] (data.goal)}. Images of another size than the model's are resized
    as in training: Lanczos with antialiasing, the aspect is not kept. What an observation lacks is marked as missing,
    and so is an image of a single colour, as in training.
    """

    def __init__(self, trained: Trained, dataset: str | None = None) -> None:
        """At the start of an episode.

        Args:
          dataset: of a run on a mixture, the one in whose units observations and actions are.
        """
        data, statistics = trained.config.data, trained.built.statistics.of(dataset)
        self._trained, self._statistics = trained, statistics
        size = trained.built.model.config.image_size
        image = (size, size, 3)
        self._shapes = {f"image_{camera}": image for camera in data.cameras}
        self._shapes |= {"proprio": statistics.proprio.mean.shape} | ({"goal": image} if data.goal else {})
        self.looks_back = data.window - 1
        self.reset()

    @property
    def inputs(self) -> Mapping[str, tuple[int, ...]]:
        """Name -> shape of all that an observation can have."""
        return self._shapes

    def reset(self) -> None:
        """Begins another episode: forgets the last. Heads that draw draw the same in every episode."""
        self._history: collections.deque[dict[str, Entry]] = collections.deque(maxlen=self._trained.config.data.window)
        self._number = 0

    def observe(self, observation: Mapping[str, np.ndarray]) -> None:
        """Takes note of a moment at which no actions are needed; models with data.window > 1 look back at it.

        Raises:
          ValueError: no camera of the run's, no image, or a proprio of another length than it was trained on.
        """
        for name, shape in self._shapes.items():
            if name in observation:
                _check(name, np.asarray(observation[name]), shape)
        cameras = [name for name in self._shapes if name.startswith("image_")]
        if not any(name in observation for name in cameras):
            raise ValueError(f"policy: the observation has none of {', '.join(cameras)}; give at least one image.")
        self._history.append({name: self._entry(observation, name) for name in self._shapes})

    def __call__(self, observation: Mapping[str, np.ndarray], instruction: str) -> np.ndarray:
        """The next actions, f32[chunk, A] in the data set's units. The first call compiles, which takes seconds.

        Args:
          observation: of the present moment; `observe` need not be called for it.
          instruction: in words; "" or blanks: none.

        Raises:
          ValueError: as `observe`.
        """
        return act_together([self], [observation], [instruction])[0]

    def _batch(self, instruction: str) -> dict[str, Any]:
        """A batch of one, as training windows are: before the first observation it is repeated, and masked."""
        missing = self._trained.config.data.window - len(self._history)
        moments = [self._history[0]] * missing + list(self._history)
        inputs = [name for name in self._shapes if name != "goal"]
        window = {name: np.stack([moment[name].values for moment in moments])[None] for name in inputs}
        proprio = self._statistics.normalise_proprio(window["proprio"])
        wider = self._trained.built.statistics.proprio_dim - self._statistics.proprio_dim
        window["proprio"] = np.pad(proprio, [(0, 0), (0, 0), (0, wider)])
        present = {name: np.asarray([[moment[name].present for moment in moments]]) for name in inputs}
        real = (np.arange(len(moments)) >= missing)[None]
        task: dict[str, Any] = {"instruction": np.asarray([instruction], object)}
        given = {"instruction": np.asarray([says(instruction)])}
        if "goal" in self._shapes:
            goal = self._history[-1]["goal"]
            task["image_primary"], given["image_primary"] = goal.values[None], np.asarray([goal.present])
        return {
            "observation": {**window, "timestep_pad_mask": real, "pad_mask_dict": present},
            "task": {**task, "pad_mask_dict": given},
        }

    def _entry(self, observation: Mapping[str, np.ndarray], name: str) -> Entry:
        dtype = np.float32 if name == "proprio" else np.uint8
        if name not in observation or (name != "proprio" and not shows(np.asarray(observation[name]))):
            return Entry(np.zeros(self._shapes[name], dtype), False)
        values = np.array(observation[name], dtype)  # a copy: a robot may write its next image into the same memory
        return Entry(values if name == "proprio" else resized(values, self._shapes[name]), True)


def act_together(
    policies: Sequence[Policy], observations: Sequence[Mapping[str, np.ndarray]], instructions: Sequence[str]
) -> list[np.ndarray]:
    """The next actions of several policies of one `Trained`, say of as many robots, computed in one batch.

    Args:
      policies: at the same number of calls since their `reset`; observations, instructions: one for each.

    Returns:
      f32[chunk, A] of each. Heads that draw draw otherwise in another row of the batch.

    Raises:
      ValueError: as `Policy.observe`, or the policies are not of one run, or not in step.
    """
    first = policies[0]
    if any(policy._trained is not first._trained or policy._number != first._number for policy in policies):
        raise ValueError("policy: policies that act together share one Trained, and were asked equally often.")
    for policy, observation in zip(policies, observations, strict=True):
        policy.observe(observation)
    rows = [policy._batch(words) for policy, words in zip(policies, instructions, strict=True)]
    batch = jax.tree.map(lambda *parts: np.concatenate(parts), *rows)
    chunks = first._trained.predict(first._trained.params, batch, first._number)
    for policy in policies:
        policy._number += 1
    each = [policy._statistics for policy in policies]
    return [s.unnormalise_action(chunk[:, : s.action_dim]) for s, chunk in zip(each, chunks)]


def resized(image: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """uint8[H, W, 3] in another size, as the reader of data does it but for rounding."""
    if image.shape == shape:
        return image
    pixels = jax.image.resize(image.astype(np.float32), shape, "lanczos3", antialias=True)
    return np.asarray(pixels).clip(0, 255).round().astype(np.uint8)


def _check(name: str, value: np.ndarray, shape: tuple[int, ...]) -> None:
    if name == "proprio":
        if value.shape != shape:
            raise ValueError(f"policy: proprio has shape {value.shape}, but the run was trained on {shape}.")
        if not np.isfinite(value).all():
            raise ValueError("policy: proprio is NaN or infinite.")
    elif value.ndim != 3 or value.shape[-1] != 3 or value.dtype != np.uint8 or not value.size:
        raise ValueError(f"policy: {name} is {value.dtype}{list(value.shape)}; give uint8[height, width, 3].")


def load_policy(run: str | os.PathLike[str], step: int | None = None, dataset: str | None = None) -> Policy:
    """The policy of a run directory; args and errors are those of `load_run` and `Policy`.

    policy = load_policy("runs/maps")
    policy.reset()
    actions = policy({"image_primary": image, "proprio": state}, "open the drawer")
    """
    check_dataset(Path(run), dataset)
    return Policy(load_run(Path(run), step), dataset)


def check_dataset(run: Path, dataset: str | None) -> None:
    """Refuses a name that `Policy` would refuse, or ignore, before the parameters are read."""
    statistics = read_statistics(run / "statistics.json")
    statistics.of(dataset)
    if dataset is not None and not isinstance(statistics, MixtureStatistics):
        raise ValueError(f"dataset is {dataset!r}, but {run} was trained on a single data set; leave dataset out.")
