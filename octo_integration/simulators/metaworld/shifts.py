"""What a shift is, which are held out for evaluation, and which looks pretraining may see.

A `Shift` is plain numbers: looks, words and layouts follow from it and from the episode's seed. Every quantity has two
sets of ranges, HELD_OUT and SEEN, which do not overlap: a model pretrained on SEEN frames has never met a HELD_OUT
look. Of PRETRAINED_FACTORS it has met other values; camera and distractors never vary in pretraining at all.
"""

import dataclasses
import zlib

import numpy as np

from octo_integration.simulators.appearance import RGB, Camera, Light, Texture
from octo_integration.simulators.metaworld.goals import Distractor, draw_distractors

Range = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Color:
    """Another colour of the manipulated object: hue and saturation, 0..1 (its parts keep their brightness)."""

    hue: float
    saturation: float


@dataclasses.dataclass(frozen=True)
class Shift:
    """What differs from the scene as collected; None: nothing.

    Attributes:
      color: of the manipulated object; in the task `point` of the goal, whose name in the instruction changes with it.
      distractors: shapes beside where the object was at reset.
      wording: "instruction", "synonym" or "paraphrase" of tasks.py; `paraphrase` picks one of several.
      layout: one of LAYOUTS: the part of the initial states that `reset` draws from.
      goals: one of `goals.GOALS`: what the goal of the task `point` is, from the next `reset` on.
    """

    name: str = "none"
    texture: Texture | None = None
    light: Light | None = None
    camera: Camera | None = None
    color: Color | None = None
    distractors: tuple[Distractor, ...] = ()
    wording: str = "instruction"
    paraphrase: int = 0
    layout: str = "all"
    goals: str = "known"


@dataclasses.dataclass(frozen=True)
class Ranges:
    """Where looks are drawn from. A tuple of ranges: one of them is drawn first, each as likely.

    The units are those of the classes above; `warmth` w makes the tint (1 + w, 1, 1 - w).
    """

    patterns: tuple[str, ...]
    intensity: tuple[Range, ...]
    warmth: tuple[Range, ...]
    side: tuple[Range, ...]
    azimuth: tuple[Range, ...]
    elevation: tuple[Range, ...]
    distance: tuple[Range, ...]
    hue: tuple[Range, ...]


HELD_OUT = Ranges(
    patterns=("checker", "stripes"),
    intensity=((0.35, 0.5), (1.5, 1.7)),
    warmth=((-0.4, -0.25), (0.25, 0.4)),
    side=((-1.0, -0.7), (0.7, 1.0)),
    azimuth=((-14.0, -9.0), (9.0, 14.0)),
    elevation=((-7.0, -4.0), (4.0, 7.0)),
    distance=((0.86, 0.92), (1.08, 1.14)),
    hue=((0.46, 0.54), (0.74, 0.86)),
)
SEEN = Ranges(
    patterns=("blobs", "gradient", "plain", "speckle"),
    intensity=((0.65, 1.3),),
    warmth=((-0.15, 0.15),),
    side=((-0.5, 0.5),),
    azimuth=((0.0, 0.0),),
    elevation=((0.0, 0.0),),
    distance=((1.0, 1.0),),
    hue=((-0.04, 0.02), (0.06, 0.09), (0.13, 0.17), (0.28, 0.4), (0.58, 0.67), (0.9, 0.94)),
)
PRETRAINED_FACTORS = ("texture", "light", "color")
# Shares of the first axis along which a task's initial states vary; demonstrations are "restricted" where one wants to
# measure what happens at "shifted" ones.
LAYOUTS = {"all": (0.0, 1.0), "restricted": (0.0, 0.65), "shifted": (0.75, 1.0)}
HUE_NAMES = {
    "red": 0.0,
    "orange": 0.075,
    "yellow": 0.15,
    "green": 0.34,
    "cyan": 0.5,
    "blue": 0.62,
    "purple": 0.8,
    "pink": 0.92,
}


def _draw(rng: np.random.Generator, ranges: tuple[Range, ...]) -> float:
    return float(rng.uniform(*ranges[rng.integers(len(ranges))]))


def _color(rng: np.random.Generator) -> RGB:
    r, g, b = rng.uniform(0.15, 0.9, 3)
    return float(r), float(g), float(b)


def _texture(rng: np.random.Generator, ranges: Ranges) -> Texture:
    return Texture(
        pattern=str(rng.choice(ranges.patterns)),
        table=(_color(rng), _color(rng)),
        floor=(_color(rng), _color(rng)),
        cells=int(rng.integers(4, 9)),
        seed=int(rng.integers(2**31)),
    )


def _light(rng: np.random.Generator, ranges: Ranges) -> Light:
    warmth = _draw(rng, ranges.warmth)
    tint = (1 + warmth, 1.0, 1 - warmth)
    return Light(_draw(rng, ranges.intensity), tint, _draw(rng, ranges.side))


def _camera(rng: np.random.Generator, ranges: Ranges) -> Camera:
    return Camera(_draw(rng, ranges.azimuth), _draw(rng, ranges.elevation), _draw(rng, ranges.distance))


def _object_color(rng: np.random.Generator, ranges: Ranges) -> Color:
    return Color(_draw(rng, ranges.hue) % 1.0, float(rng.uniform(0.7, 1.0)))


def _all(rng: np.random.Generator) -> Shift:
    return Shift(
        "all",
        texture=_texture(rng, HELD_OUT),
        light=_light(rng, HELD_OUT),
        camera=_camera(rng, HELD_OUT),
        color=_object_color(rng, HELD_OUT),
        distractors=draw_distractors(rng),
    )


_HELD_OUT_SHIFTS = {
    "none": lambda rng: Shift(),
    "texture": lambda rng: Shift("texture", texture=_texture(rng, HELD_OUT)),
    "light": lambda rng: Shift("light", light=_light(rng, HELD_OUT)),
    "camera": lambda rng: Shift("camera", camera=_camera(rng, HELD_OUT)),
    "color": lambda rng: Shift("color", color=_object_color(rng, HELD_OUT)),
    "distractors": lambda rng: Shift("distractors", distractors=draw_distractors(rng)),
    "all": _all,
    "synonym": lambda rng: Shift("synonym", wording="synonym"),
    "language": lambda rng: Shift("language", wording="paraphrase", paraphrase=int(rng.integers(2**31))),
    "positions": lambda rng: Shift("positions", layout="shifted"),
    "new_pairs": lambda rng: Shift("new_pairs", goals="new_pairs"),
    "new_shapes": lambda rng: Shift("new_shapes", goals="new_shapes"),
}
SHIFTS = tuple(_HELD_OUT_SHIFTS)
VISUAL_SHIFTS = ("texture", "light", "camera", "color", "distractors", "all")
WORD_SHIFTS = ("synonym", "language")
# The same episode cannot be had under these: they start elsewhere or want something else.
EPISODE_SHIFTS = ("positions", "new_pairs", "new_shapes")
GOAL_SHIFTS = ("new_pairs", "new_shapes")  # of tasks whose goal is a coloured shape


def draw_shift(name: str, seed: int, layout: str = "all") -> Shift:
    """A held-out shift of one kind, the same for the same seed.

    Draws for choosing between models and for the final test must not be the same: put "dev" or "test" among the words
    of `seed_of`.

    Args:
      name: one of SHIFTS.
      seed: of what is drawn.
      layout: one of LAYOUTS, where the shift itself is not one of layouts.

    Raises:
      ValueError: unknown name or layout.
    """
    if name not in _HELD_OUT_SHIFTS:
        raise ValueError(f"unknown shift {name!r}; there are {', '.join(SHIFTS)}.")
    if layout not in LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}; there are {', '.join(LAYOUTS)}.")
    shift = _HELD_OUT_SHIFTS[name](np.random.default_rng([zlib.crc32(name.encode()), seed]))
    return dataclasses.replace(shift, layout=layout) if shift.layout == "all" else shift


def draw_seen(rng: np.random.Generator) -> Shift:
    """Random looks for pretraining, from the ranges SEEN: each of PRETRAINED_FACTORS three times in four."""
    texture, light, color = rng.random(3) < 0.75
    return Shift(
        name="seen",
        texture=_texture(rng, SEEN) if texture else None,
        light=_light(rng, SEEN) if light else None,
        color=_object_color(rng, SEEN) if color else None,
    )


def hue_name(hue: float) -> str:
    """The colour word nearest to a hue (0..1, cyclic)."""
    return min(HUE_NAMES, key=lambda name: abs((hue - HUE_NAMES[name] + 0.5) % 1.0 - 0.5))
