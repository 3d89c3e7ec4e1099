"""Action heads: from the decoder's readouts to a chunk of actions. One file each, and one entry in the table.

A file has the head's knobs, a `HeadConfig`, and the head, a module `head.make(action_dim, dtype)` with two methods:

  loss(x, action, mask, key) -> (f32[] to minimise, {name: f32[]} to log)
  predict(x, key) -> f32[B, chunk, A], normalised

x: [B, chunk, W] readouts; action: f32[B, chunk, A], normalised; mask: bool[B, chunk, A], True where the entry counts;
key: where a head draws noise. Losses are float32 whatever the precision of the pass.
"""

import dataclasses
import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

# kind -> "file:config". Imported when a model is made: `--help`, which shows the kinds, need not wait for flax.
HEADS: Mapping[str, str] = {
    "l1": "regression:L1Config",
    "diffusion": "diffusion:DiffusionConfig",
    "tokens": "tokens:TokensConfig",
}

if TYPE_CHECKING:
    HeadKind: TypeAlias = str
else:
    HeadKind = Literal[tuple(HEADS)]


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """The form of every head's knobs."""

    def make(self, action_dim: int, dtype: str) -> Any:
        """The head with these knobs."""
        raise NotImplementedError


def config_of(kind: HeadKind) -> type[HeadConfig]:
    """The class of a kind's knobs.

    Raises:
      ValueError: no such kind; names those that there are.
    """
    if kind not in HEADS:
        raise ValueError(f"there is no action head {kind!r}; there are: {', '.join(HEADS)}.")
    file, _, name = HEADS[kind].partition(":")
    found: type[HeadConfig] = getattr(importlib.import_module(f"{__name__}.{file}"), name)
    return found


def other(kind: HeadKind, like: HeadConfig) -> HeadConfig:
    """The knobs of a kind: those that `like` has too are as there, the rest has its defaults."""
    cls = config_of(kind)
    shared = {field.name for field in dataclasses.fields(cls)} & {field.name for field in dataclasses.fields(like)}
    return cls(**{name: getattr(like, name) for name in shared})
