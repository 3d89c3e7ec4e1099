from types import SimpleNamespace
from typing import Any

REGISTERED_ENVS: dict[str, Any] = {}


def register(name: str, cls: type) -> None:
    REGISTERED_ENVS[name] = SimpleNamespace(uid=name, cls=cls)
