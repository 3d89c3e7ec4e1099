"""Other surfaces, lamps and cameras of a MuJoCo scene, as plain numbers, and the pixels of its textures."""

import dataclasses
from typing import Any

import numpy as np

RGB = tuple[float, float, float]
TILE = 128  # pixels of a pattern before it is stretched over its texture


@dataclasses.dataclass(frozen=True)
class Texture:
    """Other surfaces of table and floor: a pattern in two colours (0..1), `cells` periods across the texture."""

    pattern: str
    table: tuple[RGB, RGB]
    floor: tuple[RGB, RGB]
    cells: int
    seed: int


@dataclasses.dataclass(frozen=True)
class Light:
    """Other lamps: all of them times `intensity` and `tint`, and moved to one side by `side` (-1..1)."""

    intensity: float
    tint: RGB
    side: float


@dataclasses.dataclass(frozen=True)
class Camera:
    """Another place to look from, on a sphere around the workspace: degrees, and a factor on the distance."""

    azimuth: float
    elevation: float
    distance: float


def tile(pattern: str, colors: tuple[RGB, RGB], texture: Texture) -> np.ndarray:
    """uint8[TILE, TILE, 3], a mixture of two colours."""
    rng = np.random.default_rng(texture.seed)
    y, x = np.meshgrid(*2 * [np.arange(TILE) / TILE], indexing="ij")
    mixture = _PATTERNS[pattern](x, y, texture.cells, rng)[..., None]
    mixed = (1 - mixture) * np.array(colors[0]) + mixture * np.array(colors[1])
    return np.asarray(255 * mixed.clip(0, 1) + 0.5, np.uint8)


def _blobs(x: np.ndarray, y: np.ndarray, cells: int, rng: np.random.Generator) -> np.ndarray:
    phases, waves = rng.uniform(0, 2 * np.pi, 6), rng.integers(-cells // 2, cells // 2 + 1, (6, 2))
    angles = 2 * np.pi * (waves[:, 0, None, None] * x + waves[:, 1, None, None] * y)
    return 0.5 + 0.5 * np.sin(angles + phases[:, None, None]).mean(0)


_PATTERNS = {
    "plain": lambda x, y, cells, rng: np.zeros_like(x),
    "gradient": lambda x, y, cells, rng: 0.5 + 0.5 * np.sin(2 * np.pi * (x + rng.random())),
    "blobs": _blobs,
    "speckle": lambda x, y, cells, rng: rng.random((16, 16)).repeat(8, 0).repeat(8, 1) * 0.6,
    "checker": lambda x, y, cells, rng: (np.floor(cells * x) + np.floor(cells * y)) % 2,
    "stripes": lambda x, y, cells, rng: np.floor(2 * cells * x) % 2,
}


def stretch(drawn: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A tile stretched over uint8[height, width, 3] by repeating pixels."""
    rows, columns = (np.arange(n) * TILE // n for n in shape[:2])
    return drawn[:, columns][rows]  # in two steps, because copies of whole rows are ten times faster


def pixels(model: Any, texture: int) -> np.ndarray:
    """A view of a texture's pixels: uint8[height, width, 3]."""
    height, width = model.tex_height[texture], model.tex_width[texture]
    start, channels = model.tex_adr[texture], model.tex_nchannel[texture]
    return model.tex_data[start : start + height * width * channels].reshape(height, width, channels)
