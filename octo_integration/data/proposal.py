"""A JSON mapping guessed from what fields are called and are. Importing it does not import tensorflow."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from octo_integration.data.mapping import WHOLE, FieldMapping

WRIST = re.compile(r"wrist|hand|gripper", re.I)
GRIPPER = re.compile(r"grip", re.I)
OTHER_ACTION = re.compile(r"action|command", re.I)
INSTRUCTION = ("language_instruction", "instruction", "task", "language")
NAMES = ("primary", "secondary", "tertiary")


class Leaf(NamedTuple):
    """A field of the steps, or under "/path" of the episode: kind is "image", "vector" (of a size) or "text"."""

    kind: str
    size: int


def propose(leaves: Mapping[str, Leaf]) -> FieldMapping:
    """A mapping that reads these fields; a person decides whether it is right.

    Raises:
      ValueError: there is no image, vector, action or text.
    """
    # In an order that does not depend on that of features.json, which is none; a gripper comes last.
    steps = sorted((p for p in leaves if not p.startswith(WHOLE)), key=lambda p: (bool(GRIPPER.search(p)), p))
    images, vectors = ([path for path in steps if leaves[path].kind == kind] for kind in ("image", "vector"))
    action = [path for path in vectors if path.split("/")[0] == "action"]
    action = action or [path for path in vectors if OTHER_ACTION.search(path)][:1]
    state = [path for path in vectors if path.startswith("observation/") and path not in action]
    state = state or [path for path in vectors if path not in action]
    instructions = texts(leaves)
    for what, found in (("image", images), ("action", action), ("state", state), ("instruction", instructions)):
        if not found:
            raise ValueError(f"there is no {what} among the fields {', '.join(leaves)}; a mapping needs one.")
    return FieldMapping(
        images=_cameras(images),
        state={path: leaves[path].size for path in state},
        action={path: leaves[path].size for path in action},
        instruction=instructions[0],
    )


def texts(leaves: Mapping[str, Leaf]) -> list[str]:
    """The fields of text, the likeliest instruction first."""

    def rank(path: str) -> int:
        name = path.rsplit("/", 1)[-1]
        return INSTRUCTION.index(name) if name in INSTRUCTION else len(INSTRUCTION)

    return sorted(sorted(path for path, leaf in leaves.items() if leaf.kind == "text"), key=rank)


def _cameras(paths: list[str]) -> dict[str, str]:
    """The first is primary; the first that a hand carries, wrist; others are numbered."""
    wrist = next((path for path in paths if WRIST.search(path)), None)
    others = [path for path in paths if path != wrist] or paths
    names = dict(zip([*NAMES, *(f"camera_{i}" for i in range(3, len(others)))], others))
    return names if wrist is None or wrist in others else {**names, "wrist": wrist}
