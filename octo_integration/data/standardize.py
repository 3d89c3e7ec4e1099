"""Named standardisations: each turns one data set's episodes into the form that all sets share.

A standardised episode of N steps is
    {"observation": {"image_primary": string[N] (compressed) or uint8[N, H, W, 3],
                     "proprio": f32[N, P]},
     "task": {"instruction": string[N]}, "action": f32[N, A]}
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from octo_integration.data._tf import tf

Episode = dict[str, Any]
Fields = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Standardisation:
    """What one data set's steps hold, and how they become a standardised episode.

    Attributes:
      image: path of the primary image under `steps`, uint8 with three channels.
      vectors: path -> length of the float vectors that `build` reads; all must be finite.
      instruction: path of the instruction.
      build: {path: tensor over the N >= 1 raw steps} (vectors as float32) -> standardised episode.
    """

    image: str
    vectors: Mapping[str, int]
    instruction: str
    build: Callable[[Fields], Episode]


def _episode(image: Any, proprio: Any, instruction: Any, action: Any) -> Episode:
    return {
        "observation": {"image_primary": image, "proprio": proprio},
        "task": {"instruction": instruction},
        "action": action,
    }


def metaworld(steps: Fields) -> Episode:
    """Our Meta-World demonstrations, as they are."""
    return _episode(
        steps["observation/image"],
        steps["observation/state"],
        steps["language_instruction"],
        steps["action"],
    )


def bridge(steps: Fields) -> Episode:
    """BridgeData V2 as Octo does it (octo/data/oxe/oxe_standardization_transforms.py).

    The first six action entries (metres, radians) become the movement that the arm made, from the
    states, in place of the one commanded; the gripper becomes 0 (closed) or 1 (open). The last
    step, whose movement is unknown, is dropped. Proprio is all of the state.
    """
    state, action = steps["observation/state"], steps["action"]
    movement = state[1:, :6] - state[:-1, :6]
    gripper = binarise_gripper(action[:, 6])
    return _episode(
        steps["observation/image_0"][:-1],
        state[:-1],
        steps["language_instruction"][:-1],
        tf.concat([movement, gripper[:-1, None]], axis=1),
    )


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


STANDARDISATIONS: dict[str, Standardisation] = {
    "metaworld": Standardisation(
        image="observation/image",
        vectors={"observation/state": 4, "action": 4},
        instruction="language_instruction",
        build=metaworld,
    ),
    "bridge": Standardisation(
        image="observation/image_0",
        vectors={"observation/state": 7, "action": 7},
        instruction="language_instruction",
        build=bridge,
    ),
}
