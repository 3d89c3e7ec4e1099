"""A video of an episode."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from octo_integration.common.files import replacing

SMALLEST = 256  # pixels; smaller images are enlarged
RATE = 20  # frames per second; half as fast as Meta-World's robot, as fast as LIBERO's


def write_video(directory: Path, episode: Any, success: bool, images: Sequence[np.ndarray]) -> None:
    """Writes <task>-<shift>-<number>-<success or failure>, mp4 if imageio-ffmpeg is installed, otherwise gif.

    Args:
      episode: `rollout.Episode`.
      images: uint8[S, S, 3] each.

    Raises:
      OSError: it cannot be written; nothing is left.
    """
    import imageio.v3 as imageio

    name = (
        f"{episode.task.replace('/', '-')}-{episode.shift}-{episode.number:03d}-{'success' if success else 'failure'}"
    )
    ending = ".mp4" if importlib.util.find_spec("imageio_ffmpeg") else ".gif"
    scale = -(-SMALLEST // images[0].shape[0])
    frames = np.stack(images).repeat(scale, 1).repeat(scale, 2)
    options = {"duration": 1000 / RATE, "loop": 0} if ending == ".gif" else {"fps": RATE}
    directory.mkdir(parents=True, exist_ok=True)
    with replacing(directory / f"{name}{ending}") as partial:
        imageio.imwrite(partial, frames, **options)
