"""A standardisation as JSON, for data sets whose steps need no code: which field is what, and how the gripper counts.

    {"images": {"primary": "observation/image", "wrist": "observation/wrist_image"},
     "state": {"observation/state": 8},
     "action": {"action": 7},
     "gripper": {"entry": 6, "closed": 1, "open": -1},
     "instruction": "language_instruction"}

Importing it does not import tensorflow.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

OPTION = "data.standardize"
SUFFIX = ".json"
COPY = "mapping.json"  # in the directory of a run
WHOLE = "/"  # begins the path of what an episode has once, beside its steps


class Gripper(NamedTuple):
    """The entry of the joined action that opens and closes, and its values; standardised they are 0 and 1."""

    entry: int
    closed: float
    open: float


@dataclasses.dataclass(frozen=True)
class FieldMapping:
    """What the JSON says.

    Attributes:
      images: camera -> path under `steps`.
      state, action: path under `steps` -> length of the vector; several are joined in their order.
      instruction: path under `steps`; "/episode_metadata/task" is what the episode has once.
      gripper: None: actions are taken as they are.
    """

    images: Mapping[str, str]
    state: Mapping[str, int]
    action: Mapping[str, int]
    instruction: str
    gripper: Gripper | None = None


def is_mapping(name: str) -> bool:
    """Whether a standardisation's name is that of a JSON file."""
    return name.endswith(SUFFIX)


def read_mapping(path: Path) -> FieldMapping:
    """Reads the file.

    Raises:
      ValueError: there is none, or it is no mapping; one line names the entry and what is there.
    """
    if not path.is_file():
        raise ValueError(f"{OPTION}: there is no file {path}; maps-vla inspect-data proposes one.")
    try:
        content = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{OPTION}: {path} is not JSON ({error}).") from None
    try:
        return from_json(content)
    except ValueError as error:
        raise ValueError(f"{OPTION}: {path}: {error}") from None


def from_json(content: Any) -> FieldMapping:
    """The mapping that parsed JSON holds.

    Raises:
      ValueError: it is none; names the entry and what is there.
    """
    if not isinstance(content, dict):
        raise ValueError(f"it holds {_short(content)}, no map of {', '.join(ENTRIES)}.")
    for name in content:
        if name not in ENTRIES:
            raise ValueError(f"there is no entry {name!r}; there are {', '.join(ENTRIES)}.")
    for name in ENTRIES:
        if name not in content and name != "gripper":
            raise ValueError(f"it has no {name}; give it.")
    found = {name: ENTRIES[name](name, value) for name, value in content.items()}
    mapping = FieldMapping(**found)
    if mapping.gripper and mapping.gripper.entry >= (size := sum(mapping.action.values())):
        raise ValueError(f"gripper: entry is {mapping.gripper.entry}, but an action has {size} entries, from 0 on.")
    return mapping


def to_json(mapping: FieldMapping) -> str:
    """The text of a file."""
    content = dataclasses.asdict(mapping)
    content["gripper"] = mapping.gripper and mapping.gripper._asdict()
    return json.dumps({name: value for name, value in content.items() if value is not None}, indent=1) + "\n"


def _images(name: str, value: Any) -> Mapping[str, str]:
    if not isinstance(value, dict) or not value or not all(_is_path(path) for path in value.values()):
        raise ValueError(
            f"{name} is {_short(value)}; give cameras and their fields: {{'primary': 'observation/image'}}."
        )
    return value


def _vectors(name: str, value: Any) -> Mapping[str, int]:
    if not isinstance(value, dict) or not value or not all(type(size) is int and size > 0 for size in value.values()):
        raise ValueError(f"{name} is {_short(value)}; give fields and their lengths: {{'observation/{name}': 7}}.")
    return value


def _instruction(name: str, value: Any) -> str:
    if not _is_path(value):
        raise ValueError(f"{name} is {_short(value)}; give a field of the steps, or /field of the episode.")
    return value


def _gripper(name: str, value: Any) -> Gripper | None:
    if value is None:
        return None
    if not isinstance(value, dict) or value.keys() != set(Gripper._fields):
        raise ValueError(f"{name} is {_short(value)}; give {', '.join(Gripper._fields)}, each a number.")
    gripper = Gripper(**value)
    if type(gripper.entry) is not int or gripper.entry < 0:
        raise ValueError(f"{name}: entry is {_short(gripper.entry)}; give its place in the action, from 0 on.")
    for key in ("closed", "open"):
        number = getattr(gripper, key)
        if type(number) not in (int, float) or not math.isfinite(number):
            raise ValueError(f"{name}: {key} is {_short(number)}; give a finite number.")
    if gripper.closed == gripper.open:
        raise ValueError(f"{name}: closed and open are both {gripper.open:g}; give what tells them apart.")
    return gripper


ENTRIES: dict[str, Callable[[str, Any], Any]] = {
    "images": _images,
    "state": _vectors,
    "action": _vectors,
    "gripper": _gripper,
    "instruction": _instruction,
}


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and value.strip(WHOLE) != ""


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
