"""Named standardisations: each turns one data set's episodes into the form that all sets share.

A standardised episode of N steps is
    {"observation": {"image_<camera>": string[N] (compressed) or uint8[N, H, W, 3],
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
      images: camera -> path of its image under `steps`, uint8 with three channels. A data set need not have them all.
      vectors: path -> length of the float vectors that `build` reads; all must be finite.
      instruction: path of the instruction.
      build: {path: tensor over the N >= 1 raw steps} (vectors as float32) -> (proprio, action, slice of the steps that
        they are of).
    """

    images: Mapping[str, str]
    vectors: Mapping[str, int]
    instruction: str
    build: Callable[[Fields], tuple[Any, Any, slice]]


ALL = slice(None)


def episode(standardisation: Standardisation, steps: Fields) -> Episode:
    """The standardised episode of {path: tensor over the raw steps}, with the cameras that `steps` has."""
    proprio, action, kept = standardisation.build(steps)
    images = {f"image_{c}": steps[path][kept] for c, path in standardisation.images.items() if path in steps}
    return {
        "observation": {**images, "proprio": proprio},
        "task": {"instruction": steps[standardisation.instruction][kept]},
        "action": action,
    }


def metaworld(steps: Fields) -> tuple[Any, Any, slice]:
    """Our Meta-World demonstrations, as they are."""
    return steps["observation/state"], steps["action"], ALL


def bridge(steps: Fields) -> tuple[Any, Any, slice]:
    """BridgeData V2 as Octo does it (octo/data/oxe/oxe_standardization_transforms.py).

    The first six action entries (metres, radians) become the movement that the arm made, from the
    states, in place of the one commanded; the gripper becomes 0 (closed) or 1 (open). The last
    step, whose movement is unknown, is dropped. Proprio is all of the state.
    """
    state, action = steps["observation/state"], steps["action"]
    movement = state[1:, :6] - state[:-1, :6]
    gripper = binarise_gripper(action[:, 6])
    return state[:-1], tf.concat([movement, gripper[:-1, None]], axis=1), slice(None, -1)


def libero(steps: Fields) -> tuple[Any, Any, slice]:
    """LIBERO as OpenVLA re-recorded it (modified_libero_rlds): its gripper goes from -1 (open) to 1 (closed).

    The gripper becomes 0 (closed) or 1 (open). Proprio is all of the state: pose (6), both fingers.
    """
    action = steps["action"]
    gripper = 1.0 - tf.clip_by_value(action[:, 6:], 0.0, 1.0)
    return steps["observation/state"], tf.concat([action[:, :6], gripper], axis=1), ALL


def calvin(steps: Fields) -> tuple[Any, Any, slice]:
    """CALVIN (calvin_abc_rlds): relative actions; its gripper is -1 (closed) or 1 (open).

    The gripper becomes 0 (closed) or 1 (open). Proprio is pose (6), gripper width and gripper action of the 15 entries.
    """
    action, state = steps["action"], steps["observation/state"]
    gripper = tf.cast(action[:, 6:] > 0, tf.float32)
    proprio = tf.concat([state[:, :7], state[:, 14:]], axis=1)
    return proprio, tf.concat([action[:, :6], gripper], axis=1), ALL


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
        images={"primary": "observation/image"},
        vectors={"observation/state": 4, "action": 4},
        instruction="language_instruction",
        build=metaworld,
    ),
    "bridge": Standardisation(
        images={"primary": "observation/image_0", "secondary": "observation/image_1", "wrist": "observation/image_3"},
        vectors={"observation/state": 7, "action": 7},
        instruction="language_instruction",
        build=bridge,
    ),
    "libero": Standardisation(
        images={"primary": "observation/image", "wrist": "observation/wrist_image"},
        vectors={"observation/state": 8, "action": 7},
        instruction="language_instruction",
        build=libero,
    ),
    "calvin": Standardisation(
        images={"primary": "observation/rgb_static", "wrist": "observation/rgb_gripper"},
        vectors={"observation/state": 15, "action": 7},
        instruction="language_instruction",
        build=calvin,
    ),
}
