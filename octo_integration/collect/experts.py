"""Demonstrations by Meta-World's scripted experts."""

import dataclasses

import numpy as np

from octo_integration.simulators.metaworld.env import ACTION_SIZE, MetaWorldEnv, Observation

STEPS_AFTER_SUCCESS = 2


@dataclasses.dataclass(frozen=True)
class Demonstration:
    """A successful episode of N steps: what was seen, what the expert wanted, and the states to render it again."""

    observations: tuple[Observation, ...]
    actions: np.ndarray  # f32[N, 4]
    snapshots: tuple[np.ndarray, ...]


def demonstrate(env: MetaWorldEnv, seed: int, *, noise: float, max_steps: int) -> Demonstration | None:
    """Runs the expert from the initial state of `seed` to a few steps after success.

    The hand's movements are carried out with Gaussian noise of standard deviation `noise`, so that the expert is also
    seen correcting itself; recorded is what it wanted.

    Returns:
      None if it did not succeed within `max_steps`.
    """
    rng = np.random.default_rng(seed)
    observation = env.reset(seed)
    observations: list[Observation] = []
    actions: list[np.ndarray] = []
    snapshots: list[np.ndarray] = []
    left: int | None = None
    while left != 0:
        if left is None and len(actions) == max_steps:
            return None
        action = env.expert_action()
        observations.append(observation)
        actions.append(action)
        snapshots.append(env.snapshot())
        observation, success = env.step(action + disturbance(rng, noise))
        if left is not None:
            left -= 1
        elif success:
            left = STEPS_AFTER_SUCCESS
    return Demonstration(tuple(observations), np.stack(actions), tuple(snapshots))


def disturbance(rng: np.random.Generator, noise: float) -> np.ndarray:
    """f32[4]: noise on the movement, none on the gripper (it would drop what it holds)."""
    values = np.zeros(ACTION_SIZE, np.float32)
    values[:3] = noise * rng.standard_normal(3)
    return values
