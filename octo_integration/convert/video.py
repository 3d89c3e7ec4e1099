"""The frames of a video that were seen at given times."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

OFF = 0.25  # of a frame's time, that a frame may be from the step it is of


def frames_at(path: Path, times: np.ndarray, fps: float) -> Iterator[np.ndarray]:
    """uint8[H, W, 3] of each of the rising `times` (seconds), decoded one after the other.

    Raises:
      ValueError: it is broken, ends early, or has no frame at one of the times; names it.
    """
    import av

    number = 0
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            base = stream.time_base
            assert base is not None
            if times[0] > 0:
                container.seek(int(times[0] / base), stream=stream)
            for frame in container.decode(stream):
                if number == len(times):
                    return
                if frame.pts is None:
                    raise TypeError("a frame has no time")
                at = frame.pts * float(base)
                off = (at - times[number]) * fps
                if off < -OFF:
                    continue
                if off > OFF:
                    raise ValueError(
                        f"convert: {path}: its frame rate varies: there is no frame at {times[number]:.4f} s, but one "
                        f"at {at:.4f} s; encode it again at {fps:g} frames per second, or leave "
                        "the episode out by --skip."
                    )
                yield frame.to_ndarray(format="rgb24")
                number += 1
    except (av.error.FFmpegError, IndexError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"convert: {path} is broken at frame {number} of {len(times)} ({reason}); copy it again, or leave the "
            "episode out by --skip."
        ) from None
    if number < len(times):
        raise ValueError(
            f"convert: {path} ends after {number} of {len(times)} frames; copy it again, or leave the episode out by "
            "--skip."
        )
