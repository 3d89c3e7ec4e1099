"""What every reader gives: an episode as it was recorded, its fields under the names of its source."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ACTION = ("action", "actions")
INSTRUCTION = ("language_instruction", "instruction", "task", "language")
OBSERVED = re.compile(r"^(observations?|obs)[./]")
# Of a step or the simulator, and nothing that a robot sees.
UNSEEN = {"rewards", "dones", "states", "next_obs", "next", "is_first", "is_last", "is_terminal", "discount"}
UNSEEN |= {"reward", "done", "timestamp", "timestamps", "frame_index", "episode_index", "index", "task_index"}

Key = Any  # tells a reader which episode; JSON


class Frames(NamedTuple):
    """The pictures of a field.

    Attributes:
      number: how many there are.
      read: gives them one by one, uint8[H, W, 3].
      shape: [H, W, 3] where it is known before one is read.
    """

    number: int
    read: Callable[[], Iterator[np.ndarray]]
    shape: tuple[int, ...] | None = None


class Episode(NamedTuple):
    """One recording of N steps; of its pictures none is read before it is asked for.

    Attributes:
      vectors: field -> numbers [N] or [N, n].
      images: field -> its pictures.
      instruction: of the episode, or one a step; "" where there is none.
      left_out: field -> why it is not converted.
    """

    vectors: Mapping[str, np.ndarray]
    images: Mapping[str, Frames]
    instruction: str | Sequence[str]
    left_out: Mapping[str, str]


class Reader(NamedTuple):
    """A form of recordings.

    Attributes:
      finds: whether a directory holds it.
      episodes: name -> key of all its episodes, in order.
      opened: the episode of a key.
    """

    finds: Callable[[Path], bool]
    episodes: Callable[[Path], Mapping[str, Key]]
    opened: Callable[[Path, Key], AbstractContextManager[Episode]]


def target(field: str) -> str:
    """Where a source's field stands in an RLDS step: actions -> action, obs/image -> observation/image."""
    return "action" if field in ACTION else "observation/" + re.sub(r"\W", "_", OBSERVED.sub("", field))


def use_of(shape: Sequence[int], dtype: np.dtype) -> str:
    """What an array [N, ...] of numbers is: "image", "vector" or, in words, why it is neither."""
    if len(shape) == 4:
        if dtype == np.uint8 and shape[3] == 3:
            return "image"
        return f"images are uint8[N, height, width, 3], and it is {dtype}{list(shape)}"
    if len(shape) in (1, 2) and dtype.kind in "fiub":
        return "vector"
    return f"neither an image nor a vector, but {dtype}{list(shape)}"


def text(value: Any) -> str:
    """Bytes or an array of one, as HDF5 and .npz hold text, as str."""
    value = value.item() if isinstance(value, np.ndarray | np.generic) and np.size(value) == 1 else value
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
