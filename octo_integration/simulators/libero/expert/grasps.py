"""Where to take hold of a thing from above: across its narrow side, or at the rim of what is wide and hollow."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from octo_integration.simulators.libero.expert.scene import Scene

OPENING = 0.073  # of the fingers
RIM = 0.012  # of a vessel: so much below its top
# Deeper, or farther out, the fingers slide up a bowl's wall and lose it.
GRIP, INSET = 0.02, 0.005  # below and inside the rim
ASKEW = np.pi / 6  # between the direction of the fingers and the rim's radius
HOME = np.pi / 2  # direction from finger to finger in the first pose
HOLLOW = ("bowl", "plate", "mug", "frypan")


class Grasp(NamedTuple):
    """A point between the fingertips, f64[3], and the direction from finger to finger as an angle about z."""

    point: np.ndarray
    yaw: float


def downward(yaw: float) -> np.ndarray:
    """The orientation of a hand that points down: f64[3, 3]."""
    cos, sin = np.cos(yaw), np.sin(yaw)
    return np.array([[cos, sin, 0], [sin, -cos, 0], [0, 0, -1.0]])


def nearest_yaw(angle: float) -> float:
    """Of the two that are the same to the fingers, the one nearer to the first pose."""
    return HOME + ((angle - HOME + np.pi / 2) % np.pi - np.pi / 2)


def choose(scene: Scene, name: str, failed: Sequence[Grasp], carried: np.ndarray) -> Grasp:
    """The grasp that leaves other things alone, turns the hand least and is not like those that failed.

    Args:
      carried: how far the thing shall be carried, f64[3]: the hand must have room there, too.
    """
    points, others = scene.thing(name), scene.others(name)
    low, high = points.min(0), points.max(0)
    middle = ((low + high) / 2)[:2]
    hollow = any(word in name for word in HOLLOW)
    found = [] if hollow else _across(points, middle)
    if not found:
        found = _at_the_rim(points, middle)

    def cost(candidate: tuple[float, Grasp]) -> float:
        width, grasp = candidate
        turn = abs(grasp.yaw - HOME)
        again = sum(
            np.linalg.norm((grasp.point - other.point)[:2]) < 0.03 and abs(grasp.yaw - other.yaw) < 0.15
            for other in failed
        )
        met = _in_the_way(others, grasp) + _in_the_way(others - carried, grasp)
        return 5 * width + 0.05 * turn + 0.02 * met + again

    return min(found, key=cost)[1]


def _across(points: np.ndarray, middle: np.ndarray) -> list[tuple[float, Grasp]]:
    """Grasps of the whole thing, with its width between the fingers."""
    low, high = points[:, 2].min(), points[:, 2].max()
    height = max(low + 0.012, high - min(0.04, 0.6 * (high - low)))
    found = []
    for angle in np.arange(36) * np.pi / 36:
        direction = np.array([np.cos(angle), np.sin(angle)])
        along = (points[:, :2] - middle) @ direction
        width = np.ptp(along)
        if width <= OPENING:
            center = middle + (along.max() + along.min()) / 2 * direction
            found.append((float(width), Grasp(np.append(center, height), nearest_yaw(angle))))
    return found


def _at_the_rim(points: np.ndarray, middle: np.ndarray) -> list[tuple[float, Grasp]]:
    """Grasps with one finger inside."""
    low, high = points[:, 2].min(), points[:, 2].max()
    rim = points[points[:, 2] > high - RIM, :2]
    height = max(high - GRIP, low + 0.012)
    found = []
    for angle in np.arange(24) * np.pi / 12:
        direction = np.array([np.cos(angle), np.sin(angle)])
        center = middle + (((rim - middle) @ direction).max() - INSET) * direction
        for askew in (0.0, -ASKEW, ASKEW):  # less firm, but the hand may have room there
            grasp = Grasp(np.append(center, height), nearest_yaw((angle + askew) % np.pi))
            found.append((0.02 * abs(askew), grasp))
    return found


def _in_the_way(others: np.ndarray, grasp: Grasp) -> int:
    """How many points are where the open hand would be."""
    along = np.array([np.cos(grasp.yaw), np.sin(grasp.yaw)])
    offset = others[:, :2] - grasp.point[:2]
    u, v, above = abs(offset @ along), abs(offset @ [-along[1], along[0]]), others[:, 2] - grasp.point[2]
    fingers = (abs(u - 0.05) < 0.022) & (v < 0.018) & (above > -0.012) & (above < 0.05)
    palm = (u < 0.115) & (v < 0.045) & (above > 0.035)
    return int(fingers.sum() + palm.sum())
