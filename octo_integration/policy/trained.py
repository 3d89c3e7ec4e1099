"""A run directory read back: its config, model and parameters."""

from pathlib import Path
from typing import Any, NamedTuple

import jax

from octo_integration.config import FinetuneConfig, MeshConfig, read_config
from octo_integration.data import read_statistics
from octo_integration.policy.predict import Predict, make_predict
from octo_integration.state import checkpoint, lora, sharding
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
