"""Other looks of every suite, and other first poses of the robot, each in three strengths: what and how much.

A `Shift` is plain numbers, drawn from a seed. The strengths of one kind and seed go the same way, only farther.
"""

import dataclasses
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from octo_integration.simulators.appearance import RGB, Camera, Light, Texture

JOINTS = 7

Drawn = dict[str, Any]  # fields of a Shift


class Distractor(NamedTuple):
    """Something more that is only seen: a kind of mujoco.mjtGeom, half its size in metres, where as shares of 0..1."""

    kind: str
    size: float
    place: tuple[float, float]
    color: RGB


@dataclasses.dataclass(frozen=True)
class Shift:
    """What differs from LIBERO's own scene; None, 0, (): nothing.

    Attributes:
      texture: of table, floor and wall, over their own in that `share`.
      noise: standard deviation of every colour value of 0..255; blur: of a Gaussian, as a share of the image's width.
      start: what is added to the joints of the robot's first pose, radians.
      seed: of the noise.
    """

    name: str = "none"
    camera: Camera | None = None
    light: Light | None = None
    texture: Texture | None = None
    share: float = 0.0
    noise: float = 0.0
    blur: float = 0.0
    start: tuple[float, ...] = ()
    distractors: tuple[Distractor, ...] = ()
    seed: int = 0


class Strength(NamedTuple):
    """The most that a shift of this strength does; of each it is at least `LEAST`."""

    degrees: float  # camera, around the scene; half as much up or down
    distance: float  # camera, nearer or farther, as a share
    intensity: float  # lamps, darker or brighter, as a share
    warmth: float  # lamps: w makes their colour (1 + w, 1, 1 - w)
    share: float  # texture
    noise: float
    blur: float
    radians: float  # of every joint, either way
    distractors: int


LEAST = 0.7
STRENGTHS = {
    1: Strength(6.0, 0.04, 0.25, 0.1, 0.35, 5.0, 0.004, 0.04, 2),
    2: Strength(12.0, 0.08, 0.45, 0.25, 0.7, 12.0, 0.008, 0.09, 4),
    3: Strength(22.0, 0.15, 0.65, 0.4, 1.0, 25.0, 0.014, 0.16, 8),
}
PATTERNS = ("checker", "stripes", "blobs", "gradient", "speckle")
KINDS = ("mjGEOM_BOX", "mjGEOM_SPHERE", "mjGEOM_CYLINDER")


def _sign(rng: np.random.Generator) -> float:
    """A share of a strength, either way."""
    return float(rng.uniform(LEAST, 1) * rng.choice([-1, 1]))


def _color(rng: np.random.Generator) -> RGB:
    r, g, b = rng.uniform(0.1, 0.95, 3)
    return float(r), float(g), float(b)


def _camera(rng: np.random.Generator, strength: Strength) -> Drawn:
    turn, rise, step = (_sign(rng) for _ in range(3))
    half = strength.degrees / 2
    return {"camera": Camera(strength.degrees * turn, half * rise, 1 + strength.distance * step)}


def _light(rng: np.random.Generator, strength: Strength) -> Drawn:
    warmth, side = strength.warmth * _sign(rng), strength.intensity * _sign(rng)
    return {"light": Light(1 + strength.intensity * _sign(rng), (1 + warmth, 1.0, 1 - warmth), side)}


def _texture(rng: np.random.Generator, strength: Strength) -> Drawn:
    pattern, cells = str(rng.choice(PATTERNS)), int(rng.integers(4, 10))
    table, floor = (_color(rng), _color(rng)), (_color(rng), _color(rng))
    return {"texture": Texture(pattern, table, floor, cells, int(rng.integers(2**31))), "share": strength.share}


def _noise(rng: np.random.Generator, strength: Strength) -> Drawn:
    return {"noise": strength.noise}


def _blur(rng: np.random.Generator, strength: Strength) -> Drawn:
    return {"blur": strength.blur}


def _start(rng: np.random.Generator, strength: Strength) -> Drawn:
    return {"start": tuple(strength.radians * _sign(rng) for _ in range(JOINTS))}


def _distractors(rng: np.random.Generator, strength: Strength) -> Drawn:
    def one() -> Distractor:
        x, y = rng.random(2)
        return Distractor(str(rng.choice(KINDS)), float(rng.uniform(0.015, 0.03)), (float(x), float(y)), _color(rng))

    return {"distractors": tuple(one() for _ in range(strength.distractors))}


_LOOKS: dict[str, Callable[[np.random.Generator, Strength], Drawn]] = {
    "camera": _camera,
    "light": _light,
    "texture": _texture,
    "noise": _noise,
    "blur": _blur,
    "distractors": _distractors,
}
_DRAW = {**_LOOKS, "robot_start": _start}
LOOKS = tuple(f"{kind}_{strength}" for kind in (*_LOOKS, "all") for strength in STRENGTHS)
STARTS = tuple(f"robot_start_{strength}" for strength in STRENGTHS)
SHIFTS = ("none", *LOOKS, *STARTS)


def draw_shift(name: str, seed: int, layout: str = "all") -> Shift:
    """A shift of one kind and strength, the same for the same seed.

    Args:
      name: one of SHIFTS; all_2 is all looks together.
      seed: of what is drawn.
      layout: "all"; LIBERO has no other.

    Raises:
      ValueError: unknown name or layout.
    """
    if name not in SHIFTS:
        raise ValueError(f"unknown shift {name!r}; there are {', '.join(SHIFTS)}.")
    if layout != "all":
        raise ValueError(f"unknown layout {layout!r}; LIBERO has all.")
    if name == "none":
        return Shift()
    kind, _, strength = name.rpartition("_")
    found: Drawn = {}
    for part in _LOOKS if kind == "all" else (kind,):
        rng = np.random.default_rng([zlib.crc32(part.encode()), seed])
        found |= _DRAW[part](rng, STRENGTHS[int(strength)])
    return Shift(name, seed=seed, **found)
