"""A run directory read back: its config, model and parameters."""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from octo_integration.config import FinetuneConfig, MeshConfig, read_config
from octo_integration.data import read_statistics
from octo_integration.policy.predict import Predict, make_predict
from octo_integration.state import checkpoint, lora, sharding, whole
from octo_integration.state.setup import Built, abstract_params, build


class Trained(NamedTuple):
    """What a run directory gives back: its config, model, and parameters of one checkpoint on one device."""

    config: FinetuneConfig
    built: Built
    params: Any
    predict: Predict


def load_run(run: Path, step: int | None = None) -> Trained:
    """Reads a run directory; the data set it was trained on need not be there.

    Args:
      step: of the checkpoint; default: the latest.

    Raises:
      FileNotFoundError: no run, or no such checkpoint.
      ValueError: its files are damaged or of another version.
    """
    config = read_config(run)
    built = build(config, read_statistics(run / "statistics.json"), run)
    mesh = sharding.make_mesh(MeshConfig(), jax.local_devices()[:1])
    like = lora.whole(*lora.split(abstract_params(config, built)))
    params = checkpoint.restore_params(run / "checkpoints", like, step)
    return Trained(config, built, params, make_predict(built, mesh))


def checkpoint_of(run: Path, step: int | None = None) -> int | None:
    """The step of the checkpoint that `load_run` reads."""
    return whole.newest_whole(run / "checkpoints") if step is None else step


def fingerprint(params: Any) -> str:
    """Of the parameters' names and bits, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        values = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {values.dtype} {values.shape}".encode())
        digest.update(np.ascontiguousarray(values).view(np.uint8).data)
    return digest.hexdigest()[:16]
