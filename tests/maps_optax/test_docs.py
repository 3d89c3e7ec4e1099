"""The examples in the docstrings run, and every public name has one."""

import doctest
import importlib
import pkgutil
import subprocess
import sys
from types import ModuleType

import pytest

import maps_optax as mx

MODULES = [
    importlib.import_module(m.name) for m in pkgutil.walk_packages(mx.__path__, "maps_optax.") if m.name != "maps_optax"
]


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)
def test_examples(module: ModuleType) -> None:
    assert doctest.testmod(module).failed == 0


def test_public_functions_have_examples() -> None:
    functions = [getattr(mx, name) for name in mx.__all__ if callable(getattr(mx, name)) and name[0].islower()]
    missing = [f.__name__ for f in functions if ">>>" not in (f.__doc__ or "")]
    assert missing == ["attach_anchor"]  # shown in detach_anchor's


def test_the_core_imports_jax_optax_and_numpy_only() -> None:
    others = "print([m for m in ('flax', 'chex', 'tensorflow', 'orbax', 'torch') if m in sys.modules])"
    codes = [f"import sys, {package}; {others}" for package in ("maps_optax", "optax")]
    seen = [subprocess.check_output([sys.executable, "-c", code], text=True) for code in codes]
    assert seen[0] == seen[1]
