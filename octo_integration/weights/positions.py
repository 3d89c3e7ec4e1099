"""Position embeddings of a square of patches, at another size than they were trained at."""

import math
from collections.abc import Sequence

import jax
import numpy as np

POSITIONS = "pos_embed"  # name of their leaf, [n * n, W]
SHARPNESS = -0.75  # of torch's bicubic kernel


def resample(positions: np.ndarray, patches: int, antialias: bool) -> np.ndarray:
    """f32[n * n, W] positions of a square of patches to f32[patches, W], bicubically.

    Args:
      antialias: as timm does it; otherwise as torch does where it is not asked to: a sharper kernel, that never gets
        wider, and edges that repeat.
    """
    before, after = math.isqrt(len(positions)), math.isqrt(patches)
    if before == after:
        return positions
    width = positions.shape[-1]
    grid: np.ndarray = positions.reshape(before, before, width)
    if antialias:
        grid = np.asarray(jax.image.resize(grid, (after, after, width), "cubic", antialias=True))
    else:
        weights = _plain_weights(before, after)
        grid = np.einsum("ai,bj,ijw->abw", weights, weights, grid, optimize=True)
    return grid.astype(np.float32).reshape(patches, width)


def resamplable(name: str, before: Sequence[int], after: Sequence[int]) -> bool:
    """Whether a leaf of this name is positions that `resample` brings from one shape to the other."""
    squares = all(len(shape) == 2 and math.isqrt(shape[0]) ** 2 == shape[0] for shape in (before, after))
    return name == POSITIONS and squares and before[1] == after[1]


def _plain_weights(before: int, after: int) -> np.ndarray:
    """f64[after, before], each row the cubic convolution of four neighbours (Keys 1981)."""
    at = (np.arange(after) + 0.5) * before / after - 0.5
    taps = np.floor(at)[:, None] + np.arange(-1, 3)
    away, a = np.abs(at[:, None] - taps), SHARPNESS
    near = ((a + 2) * away - (a + 3)) * away**2 + 1
    far = ((away - 5) * away + 8) * a * away - 4 * a
    weights = np.zeros((after, before))
    columns = np.clip(taps, 0, before - 1).astype(int)
    np.add.at(weights, (np.arange(after)[:, None], columns), np.where(away <= 1, near, far))
    return weights
