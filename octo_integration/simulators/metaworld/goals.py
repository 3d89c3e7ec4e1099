"""Coloured shapes on the table: the goals of the task `point`, and distractors. They are drawn; nothing touches them.

A third of the pairs of a known colour and a known shape is held out: pretraining and demonstrations meet both words,
but neither the pair's picture nor its name. So are two shapes and two colours altogether.
"""

import colorsys
import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from octo_integration.simulators.renderer import Geom

COLORS = ("blue", "red", "yellow", "orange", "green", "pink")
SHAPES = ("cube", "ball", "cylinder", "bar", "disc")
# By rule, and in orders such that Meta-World's own red, green and blue balls, green cube and orange ball are not held
# out (its blue block is, as a picture, not as a word).
NEW_PAIRS = frozenset((c, s) for i, c in enumerate(COLORS) for j, s in enumerate(SHAPES) if (i + j) % 3 == 0)
KNOWN_PAIRS = frozenset((c, s) for c in COLORS for s in SHAPES) - NEW_PAIRS
NEW_SHAPES = ("capsule", "egg")
NEW_COLORS = ("cyan", "purple")
GOALS = ("known", "new_pairs", "new_shapes")

SHAPES_PER_SCENE = 3
X_RANGE, Y_RANGE = (-0.2, 0.2), (0.5, 0.8)  # metres
APART = 0.09  # metres between centres, at least
NEAR = (0.08, 0.15)  # metres from the object to a distractor
MARGIN, STEP = 0.03, 0.01  # metres between an object and a distractor, and by which it is moved
TO_CAMERA = np.arctan2(-0.8, 1.3)  # radians, on the table: distractors lie on this side of the object
REACHED, LOW = 0.05, 0.15  # metres: the hand is this close in x and y, and this low
HOVER = 0.08  # metres above a shape, where the expert goes
GAIN = 10.0  # action per metre
_HSV = {
    "red": (0.0, 0.9, 0.85),
    "orange": (0.075, 0.95, 1.0),
    "yellow": (0.15, 0.9, 0.95),
    "green": (0.34, 0.85, 0.65),
    "blue": (0.62, 0.9, 0.9),
    "pink": (0.92, 0.45, 1.0),
    "cyan": (0.5, 0.9, 0.9),
    "purple": (0.8, 0.8, 0.7),
}
# MuJoCo's geom type, its size in metres (half lengths), and the height of the centre above the table.
_GEOMETRY = {
    "cube": ("mjGEOM_BOX", (0.03, 0.03, 0.03), 0.03),
    "ball": ("mjGEOM_SPHERE", (0.034, 0.034, 0.034), 0.034),
    "cylinder": ("mjGEOM_CYLINDER", (0.026, 0.026, 0.045), 0.045),
    "bar": ("mjGEOM_BOX", (0.055, 0.018, 0.014), 0.014),
    "disc": ("mjGEOM_CYLINDER", (0.042, 0.042, 0.008), 0.008),
    "capsule": ("mjGEOM_CAPSULE", (0.022, 0.022, 0.028), 0.05),
    "egg": ("mjGEOM_ELLIPSOID", (0.028, 0.028, 0.044), 0.044),
}

RGB = tuple[float, float, float]
Rectangle = tuple[np.ndarray, np.ndarray]  # low and high x, y


@dataclasses.dataclass(frozen=True)
class ColoredShape:
    """One shape: its words, its centre in metres, and its colour if that is not the one of the word."""

    color: str
    shape: str
    position: tuple[float, float, float]
    rgb: RGB | None = None

    @property
    def name(self) -> str:
        """As instructions say it: "red cube"."""
        return f"{self.color} {self.shape}"


class Scene(NamedTuple):
    """The shapes on the table and which of them is the goal."""

    shapes: tuple[ColoredShape, ...]
    goal: int


@dataclasses.dataclass(frozen=True)
class Distractor:
    """A shape that lies `distance` metres from the task's object, in the direction `angle` (radians, 0 is x)."""

    color: str
    shape: str
    angle: float
    distance: float


def draw_scene(rng: np.random.Generator, goals: str = "known", x_range: tuple[float, float] = X_RANGE) -> Scene:
    """Three shapes of different colours, all of KNOWN_PAIRS but for the goal where `goals` says so.

    Args:
      goals: one of GOALS: what the goal is.
      x_range: where the shapes' centres lie along the table's width, metres.
    """
    known = sorted(KNOWN_PAIRS)
    candidates = {
        "known": known,
        "new_pairs": sorted(NEW_PAIRS),
        "new_shapes": [(color, shape) for color in COLORS for shape in NEW_SHAPES],
    }[goals]
    pairs = [candidates[rng.integers(len(candidates))]]
    while len(pairs) < SHAPES_PER_SCENE:
        color, shape = known[rng.integers(len(known))]
        if color not in [other for other, _ in pairs]:
            pairs.append((color, shape))
    places = _places(rng, x_range)
    order = rng.permutation(SHAPES_PER_SCENE)
    shapes = tuple(_stand(pairs[number][0], pairs[number][1], spot) for number, spot in zip(order, places))
    return Scene(shapes, int(np.flatnonzero(order == 0)[0]))


def draw_distractors(rng: np.random.Generator) -> tuple[Distractor, ...]:
    """Three shapes of a held-out colour, a held-out shape, or both, for around an object."""
    pairs = [(c, s) for c in (*COLORS, *NEW_COLORS) for s in (*SHAPES, *NEW_SHAPES)]
    pairs = [(c, s) for c, s in pairs if c in NEW_COLORS or s in NEW_SHAPES]
    chosen = rng.choice(len(pairs), SHAPES_PER_SCENE, replace=False)
    # 70 degrees apart, so that they do not touch one another.
    angles = TO_CAMERA + np.radians(70) * np.arange(-1, 2) + rng.uniform(-0.15, 0.15, SHAPES_PER_SCENE)
    distances = rng.uniform(*NEAR, SHAPES_PER_SCENE)
    return tuple(Distractor(pairs[n][0], pairs[n][1], float(a), float(d)) for n, a, d in zip(chosen, angles, distances))


def place(
    distractors: Sequence[Distractor],
    center: np.ndarray,
    others: Sequence[ColoredShape],
    footprints: Sequence[Rectangle],
) -> list[ColoredShape]:
    """Distractors on the table beside an object at `center`.

    They are turned around it to where they are clear of the other shapes, and moved away from it until they are outside
    of the rectangles that it covers.
    """
    turns = [
        [_beside(distractor, center, np.radians(degrees), footprints) for distractor in distractors]
        for degrees in range(0, 360 if others else 1, 15)
    ]
    occupied = [np.array(other.position[:2]) for other in others]

    def clearance(shapes: list[ColoredShape]) -> float:
        gaps = [float(np.linalg.norm(shape.position[:2] - other)) for shape in shapes for other in occupied]
        return min([APART, *gaps])

    return max(turns, key=clearance)


def geom(shape: ColoredShape) -> Geom:
    """How to draw it."""
    kind, size, _ = _GEOMETRY[shape.shape]
    r, g, b = shape.rgb or colorsys.hsv_to_rgb(*_HSV[shape.color])
    return Geom(kind, size, shape.position, (r, g, b, 1.0))


def is_reached(hand: np.ndarray, goal: np.ndarray) -> bool:
    """Whether the hand (f32[3]) is above the goal, and low."""
    return bool(np.linalg.norm(hand[:2] - goal[:2]) < REACHED and hand[2] < LOW)


def approach(hand: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """f32[4]: the expert's action of the task `point`, in [-1, 1]: straight to above the goal, with an open gripper."""
    action = np.full(4, -1.0, np.float32)
    action[:3] = GAIN * (goal + (0.0, 0.0, HOVER) - hand)
    return action.clip(-1, 1)


def _beside(distractor: Distractor, center: np.ndarray, turn: float, footprints: Sequence[Rectangle]) -> ColoredShape:
    angle, distance = distractor.angle + turn, distractor.distance
    while True:
        spot = center[:2] + distance * np.array([np.cos(angle), np.sin(angle)])
        if not any(((low - MARGIN < spot) & (spot < high + MARGIN)).all() for low, high in footprints):
            return _stand(distractor.color, distractor.shape, spot)
        distance += STEP


def _stand(color: str, shape: str, place: np.ndarray) -> ColoredShape:
    """A shape that stands on the table at f64[2]."""
    return ColoredShape(color, shape, (float(place[0]), float(place[1]), _GEOMETRY[shape][2]))


def _places(rng: np.random.Generator, x_range: tuple[float, float]) -> np.ndarray:
    """f64[3, 2]: places on the table that are APART."""
    low, high = zip(x_range, Y_RANGE)
    while True:
        places = rng.uniform(low, high, (SHAPES_PER_SCENE, 2))
        gaps = np.linalg.norm(places[:, None] - places, axis=-1) + np.eye(SHAPES_PER_SCENE)
        if gaps.min() >= APART:
            return np.asarray(places)
