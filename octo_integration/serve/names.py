"""What an observation's entries are called: by us, by openpi's LIBERO example, and by a user's own script."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

PROMPT = "prompt"
# What our own servers and clients say beyond openpi's protocol: an episode begins; a moment to take note of; actions as
# standardised episodes have them, whatever convention the server has.
PROTOCOL = "maps_vla/1"
RESET, OBSERVE, STANDARDISED = "reset", "observe", "standardised"
OPENPI = {
    "image_primary": "observation/image",
    "image_wrist": "observation/wrist_image",
    "proprio": "observation/state",
    PROMPT: PROMPT,
}

Names = Mapping[str, str]


def spellings(inputs: Iterable[str], path: Path | None = None) -> dict[str, str]:
    """{their name: ours} of everything that a request can have: ours, openpi's, and those of a file.

    Args:
      inputs: of the policy, as it calls them.
      path: JSON, {"their/name": "image_primary"}; entries of nested maps are called by their path.

    Raises:
      FileNotFoundError, ValueError: there is no such file, or it names what the policy does not take.
    """
    ours = {*inputs, PROMPT}
    found = {name: name for name in ours} | {theirs: name for name, theirs in OPENPI.items() if name in ours}
    return found if path is None else found | read_names(path, ours)


def read_names(path: Path, ours: Iterable[str]) -> dict[str, str]:
    """{their name: ours} of a JSON file; errors are those of `spellings`."""
    if not path.is_file():
        raise FileNotFoundError(f'names: no {path}; give a JSON file like {{"their/name": "image_primary"}}.')
    try:
        names = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"names: {path} is no JSON ({error}).") from None
    if not isinstance(names, dict) or not all(name in ours for name in names.values() if isinstance(name, str)):
        raise ValueError(f"names: {path} must map names of the client's to {', '.join(sorted(ours))}.")
    if odd := [name for name in names.values() if not isinstance(name, str)]:
        raise ValueError(f"names: {path} maps a name to {odd[0]!r}; give one of {', '.join(sorted(ours))}.")
    return names


def translate(request: Mapping[str, Any], names: Names) -> dict[str, Any]:
    """The request by our names; what is not known is left out.

    Raises:
      ValueError: two entries mean the same.
    """
    found: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for theirs, value in _flat(request):
        name = names.get(theirs)
        if name is None:
            continue
        if name in found:
            raise ValueError(f"{origin[name]} and {theirs} are both {name}; send one.")
        found[name], origin[name] = value, theirs
    return found


def _flat(request: Mapping[Any, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in request.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value
