"""Demonstrations by a simulator's scripted expert."""

import dataclasses
from typing import Any

import numpy as np

from octo_integration.simulators.protocol import Environment, Observation

STEPS_AFTER_SUCCESS = 2


@dataclasses.dataclass(frozen=True)
class Demonstration:
    """A successful episode of N steps: what was seen, what the expert wanted, and the states to render it again."""

    observations: tuple[Observation, ...]
    actions: np.ndarray  # f32[N, A]
    snapshots: tuple[Any, ...]


def demonstrate(env: Environment, seed: int, *, noise: float, max_steps: int, movement: int) -> Demonstration | None:
    """Runs the expert from the initial state of `seed` to a few steps after success.

    The first `movement` entries of an action are carried out with Gaussian noise of standard deviation `noise`, so that
    the expert is also seen correcting itself; recorded is what it wanted.

    Returns:
      None if it did not succeed within `max_steps`.
    """
    rng = np.random.default_rng(seed)
    observation = env.reset(seed)
    observations: list[Observation] = []
    actions: list[np.ndarray] = []
    snapshots: list[Any] = []
    left: int | None = None
    while left != 0:
        if left is None and len(actions) == max_steps:
            return None
        action = np.asarray(env.expert_action(), np.float32)
        observations.append(observation)
        actions.append(action)
        snapshots.append(env.snapshot())
        success = env.advance(disturbed(rng, action, noise, movement))
        observation = env.look()
        if left is not None:
            left -= 1
        elif success:
            left = STEPS_AFTER_SUCCESS
    return Demonstration(tuple(observations), np.stack(actions), tuple(snapshots))


def disturbed(rng: np.random.Generator, action: np.ndarray, noise: float, movement: int) -> np.ndarray:
    """An action with noise on its first `movement` entries."""
    values = np.zeros(len(action), np.float32)
    values[:movement] = noise * rng.standard_normal(movement)
    return action + values
