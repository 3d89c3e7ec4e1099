"""Settings of JAX, outside a config, that decide what a run computes: they stay the same when it is resumed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

FLAGS = ("jax_enable_x64", "jax_default_prng_impl", "jax_threefry_partitionable")


def flags() -> dict[str, Any]:
    """The settings that this version of JAX has, with their values."""
    return {name: getattr(jax.config, name) for name in FLAGS if hasattr(jax.config, name)}


def check_flags(out: Path, before: Mapping[str, Any]) -> None:
    """Raises ValueError where a setting is not what the run in `out` was made with; names its environment variable.

    Args:
      before: what `flags` was then, among other things; settings that it lacks are not compared.
    """
    for name, now in flags().items():
        if before.get(name, now) != now:
            raise ValueError(
                f"{out} holds a run made with {name.upper()}={before[name]}, this process has {now}; set "
                f"{name.upper()}={before[name]} in the environment, or choose another --out."
            )
