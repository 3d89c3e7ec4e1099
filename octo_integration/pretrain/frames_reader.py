"""Labelled single frames for pretraining (made by `collect.frames`), whole in memory."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

SHAPES: Mapping[str, tuple[int | None, ...]] = {
    "image": (None, None, 3),
    "hand": (3,),
    "object": (3,),
    "goal": (3,),
    "hand_pixel": (2,),
    "object_pixel": (2,),
    "opening": (),
    "shape": (None, 3),
    "shape_pixel": (None, 2),
    "shape_names": (),
    "instruction": (),
    "caption": (),
    "task": (),
}
TEXTS = ("shape_names", "instruction", "caption", "task")


@dataclasses.dataclass(frozen=True)
class Frames:
    """N frames in the order on disk, in which the frames of an episode are neighbours.

    Attributes:
      image: uint8[N, H, W, 3].
      hand, object, goal: f32[N, 3], metres.
      hand_pixel, object_pixel: f32[N, 2], column and row as fractions of the image.
      opening: f32[N], of the gripper, 0..1.
      shape: f32[N, 3, 3], metres; shape_pixel: f32[N, 3, 2]. Where coloured shapes lie, or zeros.
      shape_names: object[N] of str, the names of these shapes ("red cube; blue ball; green disc") or "".
      instruction, caption, task: object[N] of str. Where there are shapes, object and goal are the one that the
        instruction names.
    """

    image: np.ndarray
    hand: np.ndarray
    object: np.ndarray
    goal: np.ndarray
    hand_pixel: np.ndarray
    object_pixel: np.ndarray
    opening: np.ndarray
    shape: np.ndarray
    shape_pixel: np.ndarray
    shape_names: np.ndarray
    instruction: np.ndarray
    caption: np.ndarray
    task: np.ndarray

    def __len__(self) -> int:
        """N."""
        return len(self.image)

    def take(self, index: Any) -> "Frames":
        """The frames of a slice or an index array."""
        return Frames(**{name: getattr(self, name)[index] for name in SHAPES})


def measure_frames(path: str | Path) -> tuple[int, int]:
    """How many frames `read_frames` will read, and their height in pixels, by the metadata alone.

    Raises:
      FileNotFoundError: as `read_frames`.
      ValueError: the metadata are damaged, or of other features.
    """
    info = _open(path).info
    return info.splits["train"].num_examples, info.features["image"].shape[0]


def read_frames(path: str | Path) -> Frames:
    """Reads the split "train" of a TFDS directory.

    Args:
      path: the directory with dataset_info.json.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is damaged, empty, has other features, or positions that are not finite.
    """
    from octo_integration.data.tf import settled, tf

    builder = _open(path)
    try:
        rows = list(settled(builder.as_dataset(split="train")).as_numpy_iterator())
    except tf.errors.OpError as error:
        line = str(error).splitlines()[0]
        raise ValueError(f"frames: {path} is damaged ({line}); render it again.") from None
    if not rows:
        raise ValueError(f"frames: {path} is empty; render frames first.")
    columns = {name: np.stack([row[name] for row in rows]) for name in SHAPES}
    for name, values in columns.items():
        if values.dtype == np.float32 and not np.isfinite(values).all():
            raise ValueError(f"frames: {path}: {name} has values that are not finite; render again.")
    for name in TEXTS:
        texts = [text.decode(errors="replace") for text in columns[name].tolist()]
        columns[name] = np.array(texts, dtype=object)
    return Frames(**columns)


def _open(path: str | Path) -> Any:
    """TFDS's builder of frames with the features that they should have."""
    from octo_integration.data.tf import tfds
    from octo_integration.data.trusted import check_features, check_inside

    if not os.path.isfile(os.path.join(path, "dataset_info.json")):
        raise FileNotFoundError(
            f"frames: {path} has no dataset_info.json; give a directory of frames made by "
            "octo_integration.collect.frames."
        )
    try:
        check_features(str(path))
        builder = tfds.builder_from_directory(path)
        files = [os.fspath(part.filename) for part in builder.info.splits["train"].file_instructions]
    except Exception as error:  # TFDS raises whatever its JSON and protobuf parsers raise
        line = " ".join(str(error).split())[:200]
        raise ValueError(f"frames: {path}: its metadata are damaged ({line}); render it again.") from None
    for file in files:
        check_inside(os.fspath(builder.data_dir), file)
    found = {name: tuple(f.shape) for name, f in builder.info.features.items() if f is not None}
    for name, shape in SHAPES.items():
        if name not in found or not _fits(found[name], shape):
            raise ValueError(
                f"frames: {path}: feature {name} is {found.get(name, 'missing')}, but should have "
                f"shape {shape}; render the frames again."
            )
    return builder


def _fits(found: tuple[int | None, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(found) == len(wanted) and all(w in (None, f) for f, w in zip(found, wanted))
