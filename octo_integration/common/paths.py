"""The one rule for paths: they lead into file systems of this machine, whatever option or file names them."""

import dataclasses
import re
from typing import Any

# With one slash too, which is what `pathlib` makes of two. One letter is a drive of Windows.
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
# Metadata of a dataclass's field that is no path, but the address of a server.
ADDRESS = {"address": True}


def refuse_schemes(value: Any, name: str = "") -> None:
    """Refuses gs://bucket/run and its like anywhere in a value: `pathlib` would make a folder ./gs: of it.

    Args:
      value: a config, a path, or lists, tuples and dicts of such.
      name: what it is called in the message.

    Raises:
      ValueError: there is one; names the option.
    """
    if dataclasses.is_dataclass(value):
        fields = [field for field in dataclasses.fields(value) if not field.metadata.get("address")]
        value = {field.name: getattr(value, field.name) for field in fields}
    if isinstance(value, dict):
        for key, part in value.items():
            refuse_schemes(part, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for part in value:
            refuse_schemes(part, name)
    elif SCHEME.match(str(value)):
        raise ValueError(
            f"{name} is {str(value)!r}, but only folders and files of this machine are read and written; mount the "
            "bucket (with gcsfuse or rclone, say), and give the path below its mount point."
        )
