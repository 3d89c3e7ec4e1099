"""A run directory as a policy: observation and instruction in, a chunk of actions in the robot's units out."""

import collections
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from octo_integration.data import read_statistics
from octo_integration.data.missing import says, shows
from octo_integration.policy.trained import Trained, load_run


class Entry(NamedTuple):
    """One entry of an observation: its values, or zeros where it is not present."""

    values: np.ndarray
    present: bool


class Policy:
    """Acts as a run learnt to, for `evaluate.rollout` or a robot.

    An observation is of one moment and not normalised: {"image_<camera>": uint8[S, S, 3] of the model's size,
    "proprio": f32[P] in the data set's units, "goal": uint8[S, S, 3] (data.goal)}. What it lacks is marked as missing,
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
        self.reset()

    def reset(self) -> None:
        """Begins another episode: forgets the last. Heads that draw draw the same in every episode."""
        self._history: collections.deque[dict[str, Entry]] = collections.deque(maxlen=self._trained.config.data.window)
        self._number = 0

    def observe(self, observation: Mapping[str, np.ndarray]) -> None:
        """Takes note of a moment at which no actions are needed; models with data.window > 1 look back at it.

        Raises:
          ValueError: no camera of the run's, or an entry of another shape than it was trained on.
        """
        for name, shape in self._shapes.items():
            if name in observation and np.shape(observation[name]) != shape:
                raise ValueError(
                    f"policy: {name} has shape {np.shape(observation[name])}, but the run was trained on {shape}."
                )
        cameras = [name for name in self._shapes if name.startswith("image_")]
        if not any(name in observation for name in cameras):
            raise ValueError(f"policy: the observation has none of {', '.join(cameras)}; give at least one image.")
        self._history.append({name: self._entry(observation, name) for name in self._shapes})

    def __call__(self, observation: Mapping[str, np.ndarray], instruction: str) -> np.ndarray:
        """The next actions, f32[chunk, A] in the data set's units.

        Args:
          observation: of the present moment; `observe` need not be called for it.
          instruction: in words; "" or blanks: none.

        Raises:
          ValueError: as `observe`.
        """
        self.observe(observation)
        actions = self._trained.predict(self._trained.params, self._batch(instruction), self._number)[0]
        self._number += 1
        return self._statistics.unnormalise_action(actions[:, : self._statistics.action_dim])

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
        # A copy: a robot may write its next image into the same memory.
        return Entry(np.array(observation[name], dtype), True)


def load_policy(run: Path, step: int | None = None, dataset: str | None = None) -> Policy:
    """The policy of a run directory; args and errors are those of `load_run` and `Policy`."""
    check_dataset(run, dataset)
    return Policy(load_run(run, step), dataset)


def check_dataset(run: Path, dataset: str | None) -> None:
    """Refuses a name that `Policy` would refuse, before the parameters are read."""
    read_statistics(run / "statistics.json").of(dataset)
