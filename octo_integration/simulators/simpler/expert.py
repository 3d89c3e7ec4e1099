"""A scripted expert: takes the first thing from above, across its length, and puts it on the second."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

from octo_integration.simulators.simpler.tasks import Spec

Moves = Iterator[np.ndarray]

OPEN, CLOSED = 1.0, 0.0
REACH, TURN = 0.03, 0.3  # metres and radians of a step at most
NEAR, STRAIGHT = 0.008, 0.06  # metres and radians: it is there
PATIENCE = 6  # steps without coming nearer
ABOVE = 0.07  # metres over a thing that the hand comes from
LOWEST = 0.021  # metres over the table: lower, the fingers rub on it and do not close
LIFTED = 0.03  # metres: it is in the hand
TRIES = 3
GRIP_STEPS = 3


class View(NamedTuple):
    """A moment, in the robot's frame.

    Attributes:
      hand: where the hand is, f64[3]; goal: where it is on its way to, which actions are added to; turn: the goal's.
      source, turned, target: where the two things are, and how the first is turned.
    """

    hand: np.ndarray
    goal: np.ndarray
    turn: Rotation
    source: np.ndarray
    turned: Rotation
    target: np.ndarray


class Expert:
    """Does the task once, then stays where it is."""

    def __init__(self, task: Spec, view: View) -> None:
        """`view`: of the first moment."""
        self._view, self._gripper = view, OPEN
        self._moves = self._all(task)

    def action(self, view: View) -> np.ndarray:
        """What to do now: f32[7]."""
        self._view = view
        return next(self._moves, self._still())

    def _all(self, task: Spec) -> Moves:
        up = np.array([0.0, 0.0, ABOVE])
        for _ in range(TRIES):
            lying, turned = self._view.source, self._view.turned
            x, y, z = lying + turned.apply([task.grasp, 0.0, 0.0])
            thing, turn = np.array([x, y, max(z, LOWEST)]), Rotation.from_euler("z", across(turned))
            yield from self._go(thing + up, turn)
            yield from self._go(thing, turn)
            yield from self._grip(CLOSED)
            yield from self._go(thing + up, turn)
            if self._view.source[2] - lying[2] > LIFTED:
                break
            yield from self._grip(OPEN)
        off = self._view.source[:2] - self._view.hand[:2]
        goal = self._view.target + np.append(-off, task.place)
        yield from self._go(goal + up, turn)
        yield from self._go(goal, turn)
        yield from self._grip(OPEN)
        yield from self._go(goal + up, turn)

    def _go(self, point: np.ndarray, turn: Rotation) -> Moves:
        """Until the hand is there, or comes no nearer."""
        best, waited = np.inf, 0
        while True:
            off = float(np.linalg.norm(point - self._view.hand))
            left = (turn * self._view.turn.inv()).as_rotvec()
            if off < NEAR and np.linalg.norm(left) < STRAIGHT:
                return
            best, waited = (off, 0) if off < best - 1e-3 else (best, waited + 1)
            if waited > PATIENCE:
                return
            angles = Rotation.from_rotvec(_short(left, TURN)).as_euler("xyz")
            yield np.concatenate([_short(point - self._view.goal, REACH), angles, [self._gripper]]).astype(np.float32)

    def _grip(self, gripper: float) -> Moves:
        self._gripper = gripper
        for _ in range(GRIP_STEPS):
            yield self._still()

    def _still(self) -> np.ndarray:
        return np.array([0.0] * 6 + [self._gripper], np.float32)


def across(turned: Rotation) -> float:
    """How far a hand turns, at most a quarter, so that its fingers close across the x of a thing."""
    along = turned.apply([1.0, 0.0, 0.0])
    return float((np.arctan2(along[1], along[0]) + np.pi / 2) % np.pi - np.pi / 2)


def _short(vector: np.ndarray, most: float) -> np.ndarray:
    length = float(np.linalg.norm(vector))
    return vector * min(1.0, most / max(length, 1e-9))
