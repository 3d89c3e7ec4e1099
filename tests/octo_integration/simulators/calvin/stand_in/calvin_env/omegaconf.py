"""As much of OmegaConf as is asked for: files (of JSON, which is YAML) and ${references} to entries of others."""

import json
import re
from pathlib import Path
from typing import Any


class Entries(dict):
    __getattr__ = dict.__getitem__
    __setattr__ = dict.__setitem__


def _entries(value: Any) -> Any:
    if isinstance(value, dict):
        return Entries({name: _entries(entry) for name, entry in value.items()})
    return [_entries(entry) for entry in value] if isinstance(value, list) else value


class OmegaConf:
    @staticmethod
    def load(file: str) -> Any:
        return _entries(json.loads(Path(file).read_text()))

    create = staticmethod(_entries)

    @staticmethod
    def merge(*several: Any) -> Any:
        merged = Entries()
        for one in several:
            merged.update(one)
        return merged

    @staticmethod
    def to_container(value: Any) -> Any:
        return value

    @staticmethod
    def resolve(root: Any) -> None:
        def found(value: Any) -> Any:
            if isinstance(value, dict):
                for name, entry in value.items():
                    value[name] = found(entry)
            elif isinstance(value, str) and (reference := re.fullmatch(r"\$\{(.+)\}", value)):
                value = root
                for name in reference[1].split("."):
                    value = value[name]
            return value

        found(root)
