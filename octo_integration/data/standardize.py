"""What a standardisation is: it turns one data set's episodes into the form that all sets share.

Each is a file of its own in `standardisations/`, or in a package of yours, or a JSON mapping; nothing else names it.

A standardised episode of N steps is
    {"observation": {"image_<camera>": string[N] (compressed) or uint8[N, H, W, 3],
                     "proprio": f32[N, P]},
     "task": {"instruction": string[N]}, "action": f32[N, A]}
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from octo_integration.common import named
from octo_integration.data.mapping import OPTION, FieldMapping, Gripper, is_mapping, read_mapping
from octo_integration.data.tf import tf

FOLDER = "octo_integration.data.standardisations"

Episode = dict[str, Any]
Fields = dict[str, Any]


class Span(NamedTuple):
    """Where raw values of a vector lie if they mean what the standardisation takes them for.

    Attributes:
      path: of the vector; entries: of those of its entries.
      low, high: no value is beyond them.
      signed: where they vary at all, it is over more than half of the span: a gripper of -1 and 1, not of 0 and 1.
    """

    path: str
    entries: slice
    low: float
    high: float
    signed: bool = False


@dataclasses.dataclass(frozen=True)
class Standardisation:
    """What one data set's steps hold, and how they become a standardised episode.

    Attributes:
      images: camera -> path of its image under `steps`, uint8 with three channels. A data set need not have them all.
      vectors: path -> length of the float vectors that `build` reads; all must be finite. A single number per step is
        one of length 1.
      instruction: path of the instruction; one that begins with / is the whole episode's, beside its steps.
      build: {path: tensor over the N >= 1 raw steps} (vectors as float32) -> (proprio, action, slice of the steps that
        they are of).
      spans: what would tell that the data have another convention; looked at when statistics are made.
      own: standardised actions f32[..., A] -> the data set's own, as its robot takes them.
    """

    images: Mapping[str, str]
    vectors: Mapping[str, int]
    instruction: str
    build: Callable[[Fields], tuple[Any, Any, slice]]
    spans: tuple[Span, ...] = ()
    own: Callable[[np.ndarray], np.ndarray] = lambda action: action


ALL = slice(None)


def known() -> list[str]:
    """The names of ours."""
    return named.names(FOLDER)


def find(name: str) -> Standardisation:
    """The STANDARDISATION of a file in `standardisations/`, or "module:NAME" of a package of yours, which it imports.

    A name that ends in .json is that of a mapping.

    Raises:
      ValueError: there is none, or the mapping is wrong.
    """
    if is_mapping(name):
        return of_mapping(read_mapping(Path(name)))
    return named.find(name, Standardisation, FOLDER, OPTION)


def source(name: str) -> bytes:
    """The file of the standardisation that `find` gave."""
    return Path(name).read_bytes() if is_mapping(name) else named.source(name, FOLDER)


def of_mapping(mapping: FieldMapping) -> Standardisation:
    """The standardisation that a mapping describes."""
    gripper = mapping.gripper

    def build(steps: Fields) -> tuple[Any, Any, slice]:
        action = tf.concat([steps[path] for path in mapping.action], axis=1)
        if gripper:
            at = gripper.entry
            opening = (action[:, at : at + 1] - gripper.closed) / (gripper.open - gripper.closed)
            action = tf.concat([action[:, :at], tf.clip_by_value(opening, 0.0, 1.0), action[:, at + 1 :]], axis=1)
        return tf.concat([steps[path] for path in mapping.state], axis=1), action, ALL

    def own(action: np.ndarray) -> np.ndarray:
        if not gripper:
            return action
        taken = np.array(action)
        taken[..., gripper.entry] = gripper.closed + taken[..., gripper.entry] * (gripper.open - gripper.closed)
        return taken

    return Standardisation(
        images=mapping.images,
        vectors={**mapping.state, **mapping.action},
        instruction=mapping.instruction,
        build=build,
        spans=(_span(mapping.action, gripper),) if gripper else (),
        own=own,
    )


def _span(action: Mapping[str, int], gripper: Gripper) -> Span:
    """Where the gripper's raw values lie."""
    places = [(path, at) for path, size in action.items() for at in range(size)]
    path, at = places[gripper.entry]
    low, high = sorted((gripper.closed, gripper.open))
    return Span(path, slice(at, at + 1), low, high, signed=low < 0 < high)


def episode(standardisation: Standardisation, steps: Fields) -> Episode:
    """The standardised episode of {path: tensor over the raw steps}, with the cameras that `steps` has."""
    proprio, action, kept = standardisation.build(steps)
    images = {f"image_{c}": steps[path][kept] for c, path in standardisation.images.items() if path in steps}
    return {
        "observation": {**images, "proprio": proprio},
        "task": {"instruction": steps[standardisation.instruction][kept]},
        "action": action,
    }


def binarise_gripper(opening: Any, closed: float = 0.05, opened: float = 0.95) -> Any:
    """Gripper openings f32[N] made 0 or 1: values in between become the next clear one.

    Values in between with no clear one after them become the last opening of the episode.
    """
    is_open = opening > opened
    clear = tf.where(is_open | (opening < closed))[:, 0]
    after = tf.searchsorted(clear, tf.range(tf.shape(opening, out_type=tf.int64)[0]), side="left")
    # One value more, for the steps after which nothing is clear.
    values = tf.concat([tf.gather(tf.cast(is_open, tf.float32), clear), opening[-1:]], axis=0)
    return tf.gather(values, after)
