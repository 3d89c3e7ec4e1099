"""Natural pictures as a yardstick of a vision tower: do two views of one piece of a picture find each other?"""

from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

# Those that lie in scikit-image's wheel; photographs, and none that was drawn or computed.
NAMES = (
    *("astronaut", "brick", "camera", "cat", "cell", "clock", "coffee", "coins", "grass", "gravel"),
    *("hubble_deep_field", "immunohistochemistry", "moon", "page", "retina", "rocket"),
)
PIECES = 2  # of a picture's height, and of its width
AREA = (0.4, 0.8)  # of a piece, that a view shows
CHANGE = 0.4  # of brightness and contrast, at most


def pieces() -> list[Image.Image]:
    """Every picture cut into PIECES x PIECES.

    Raises:
      ImportError: there is no scikit-image.
    """
    try:
        from skimage import data
    except ImportError:
        raise ImportError("the pictures are scikit-image's; pip install scikit-image.") from None
    found = []
    for name in NAMES:
        picture = Image.fromarray(getattr(data, name)()).convert("RGB")
        columns, rows = (np.linspace(0, size, PIECES + 1).astype(int) for size in picture.size)
        for top, bottom in zip(rows, rows[1:]):
            found += [picture.crop((left, top, right, bottom)) for left, right in zip(columns, columns[1:])]
    return found


def views(some: list[Image.Image], pixels: int, seed: int) -> np.ndarray:
    """uint8[N, pixels, pixels, 3]: a part of each, perhaps mirrored, of another brightness and contrast."""
    rng = np.random.default_rng(seed)
    return np.stack([np.asarray(_view(piece, pixels, rng)) for piece in some])


def _view(piece: Image.Image, pixels: int, rng: np.random.Generator) -> Image.Image:
    side = rng.uniform(*AREA) ** 0.5 * np.array(piece.size)
    left, top = rng.uniform(0, np.array(piece.size) - side)
    view: Any = piece.resize((pixels, pixels), Image.Resampling.BICUBIC, (left, top, left + side[0], top + side[1]))
    if rng.random() < 0.5:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast):
        view = enhance(view).enhance(rng.uniform(1 - CHANGE, 1 + CHANGE))
    return view


def found(queries: np.ndarray, gallery: np.ndarray) -> float:
    """Share of f[N, W] queries whose nearest of f[N, W], by the cosine, is the one of the same number."""
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, gallery)]
    return float(((unit[0] @ unit[1].T).argmax(1) == np.arange(len(queries))).mean())
