"""RLDS data sets as batches of action-chunk windows. Importing it does not import tensorflow."""

import importlib
from typing import TYPE_CHECKING, Any

from octo_integration.data.config import DataConfig
from octo_integration.data.mixture import member_of
from octo_integration.data.statistics import (
    MixtureStatistics,
    Moments,
    Statistics,
    compute_statistics,
    read_statistics,
    statistics_from_json,
)

if TYPE_CHECKING:
    from octo_integration.data.batches import eval_batches, train_batches

__all__ = [
    "DataConfig",
    "MixtureStatistics",
    "Moments",
    "Statistics",
    "compute_statistics",
    "eval_batches",
    "member_of",
    "read_statistics",
    "statistics_from_json",
    "train_batches",
]

# These need tensorflow, which takes seconds to import and which a policy in use does not have.
LAZY = ("eval_batches", "train_batches")


def __getattr__(name: str) -> Any:
    if name in LAZY:
        return getattr(importlib.import_module("octo_integration.data.batches"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
