"""Movements of the hand, each a generator of actions that sees the next moment before every one."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from octo_integration.simulators.calvin.expert.view import View

Moves = Iterator[np.ndarray]

OPEN, CLOSED = 1.0, 0.0
METRES, RADIANS = 0.02, 0.05  # of a whole action
SPEED = 0.8  # of it, so that the arm follows
DOWN = (np.pi, 0.0, np.pi / 2)  # the hand's angles: it points down, and its fingers part along x
NEAR, STRAIGHT = 0.008, 0.08  # metres and radians: it is there
PATIENCE = 12  # steps without coming nearer
FRONT = (-0.2, 0.6)  # y and z where the hand meets nothing


class Hand:
    """What is seen, renewed before each action, and how the gripper is."""

    def __init__(self, view: View, gripper: float) -> None:
        """`gripper`: OPEN or CLOSED, until `grip`."""
        self.view, self.gripper = view, gripper


def turned(yaw: float, tilt: float = 0.0) -> np.ndarray:
    """Angles of a hand that points down, or with its fingers away from the robot by `tilt`."""
    return np.array([DOWN[0], -tilt, yaw])


def apart(angles: np.ndarray) -> np.ndarray:
    """Differences of angles in -pi..pi."""
    return np.asarray((angles + np.pi) % (2 * np.pi) - np.pi)


def action(hand: Hand, goal: np.ndarray, angles: np.ndarray, speed: float = SPEED) -> np.ndarray:
    """One step on a straight way."""
    move = (goal - hand.view.target[:3]) / METRES
    turn = apart(angles - hand.view.target[3:]) / RADIANS
    move *= min(1.0, speed / max(float(np.linalg.norm(move)), 1e-9))
    return np.concatenate([move, turn.clip(-speed, speed), [hand.gripper]]).astype(np.float32)


def go(hand: Hand, point: npt.ArrayLike, angles: np.ndarray, speed: float = SPEED) -> Moves:
    """Until the hand is at x, y, z, or comes no nearer."""
    goal, best, waited = np.asarray(point, float), np.inf, 0
    while True:
        off = float(np.linalg.norm(goal - hand.view.hand))
        turn = float(np.abs(apart(angles - hand.view.robot[3:6])).max())
        if off < NEAR and turn < STRAIGHT:
            return
        rest = off + 0.1 * turn
        best, waited = (rest, 0) if rest < best - 1e-3 else (best, waited + 1)
        if waited > PATIENCE:
            return
        yield action(hand, goal, angles, speed)


def grip(hand: Hand, gripper: float, steps: int = 8) -> Moves:
    """Opens or closes, where the hand is."""
    hand.gripper = gripper
    for _ in range(steps):
        yield stay(hand)


def stay(hand: Hand) -> np.ndarray:
    """Nothing moves."""
    return np.array([0.0] * 6 + [hand.gripper], np.float32)


def front(hand: Hand, x: float, angles: np.ndarray) -> Moves:
    """To where the hand meets nothing on its way: up first, then in front of x."""
    if hand.view.hand[2] < FRONT[1] - 0.05:
        yield from go(hand, (*hand.view.hand[:2], FRONT[1]), angles)
    yield from go(hand, (x, *FRONT), angles)
