"""Parts that are one file or folder each, found by name: among ours, or "module:NAME" of the user's own package.

Finding one imports it. So names come from the command line and from code alone, never from a file that someone else may
have written: `config.json` of a run is read without.
"""

import importlib
import pkgutil
from pathlib import Path
from types import ModuleType
from typing import TypeVar

T = TypeVar("T")


def names(package: str, *, folders: bool = False) -> list[str]:
    """Those in a package of ours: its modules or, with `folders`, its packages. Imports none of them."""
    found = pkgutil.iter_modules(importlib.import_module(package).__path__)
    return sorted(module.name for module in found if module.ispkg == folders)


def find(name: str, cls: type[T], package: str, option: str, *, folders: bool = False) -> T:
    """The `cls` of that name: for Simulator what a module of `package` calls SIMULATOR, or NAME of "module:NAME".

    Args:
      name: of one of `names`, or "module:NAME".
      option: what the user gave it as, for messages.

    Raises:
      ValueError: there is none, or it is something else.
    """
    outside, colon, attribute = name.partition(":")
    if not outside or (not colon and name not in names(package, folders=folders)):
        known = ", ".join(names(package, folders=folders))
        raise ValueError(f"{option} is {name!r}; there are {known}, and module:NAME of a package of yours.")
    try:
        module = _module(name, package)
    except ImportError as error:
        raise ValueError(
            f"{option} is {name!r}, but importing {outside} failed ({error}); install it, or put its folder on "
            "PYTHONPATH."
        ) from None
    found = getattr(module, attribute or cls.__name__.upper(), None)
    if not isinstance(found, cls):
        what = f"it is a {type(found).__name__}" if found is not None else "there is none"
        raise ValueError(
            f"{option} is {name!r}, but {attribute or cls.__name__.upper()} of {module.__name__} is no "
            f"{cls.__name__}: {what}."
        )
    return found


def source(name: str, package: str) -> bytes:
    """The file that what `find` gave is in; b"" where it is in none."""
    file = getattr(_module(name, package), "__file__", None)
    return Path(file).read_bytes() if file else b""


def _module(name: str, package: str) -> ModuleType:
    outside, colon, _ = name.partition(":")
    return importlib.import_module(outside if colon else f"{package}.{name}")
