"""Meta-World for tests, which are skipped, and say so, where it or its OpenGL library is missing."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from octo_integration.simulators.isolated import isolated_env
from octo_integration.simulators.metaworld.env import MetaWorldEnv


@contextlib.contextmanager
def simulated(task: str, **options: Any) -> Iterator[MetaWorldEnv]:
    """`isolated_env`, or a skip."""
    with contextlib.ExitStack() as stack:
        try:
            env = stack.enter_context(isolated_env(MetaWorldEnv, task, **options))
        except ImportError as error:
            pytest.skip(f"no simulator here: {error}")
        yield env
