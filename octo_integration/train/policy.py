"""A run directory as a policy: observation and instruction in, a chunk of actions in the robot's units out."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from octo_integration.config import FinetuneConfig, MeshConfig, read_config
from octo_integration.data import Statistics
from octo_integration.train import checkpoint, sharding
from octo_integration.train.setup import Built, build, init_params, make_predict

Predict = Callable[[Any, Mapping[str, Any]], np.ndarray]


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
    path = run / "statistics.json"
    if not path.is_file():
        raise FileNotFoundError(f"no {path}; the run directory is not complete.")
    built = build(config, Statistics.from_json(path.read_text()))
    mesh = sharding.make_mesh(MeshConfig(), jax.local_devices()[:1])
    like = jax.eval_shape(lambda: init_params(config, built))
    params = checkpoint.restore_params(run / "checkpoints", like, step)
    return Trained(config, built, params, make_predict(built, mesh))


def load_policy(run: Path, step: int | None = None) -> Callable[[Mapping[str, np.ndarray], str], np.ndarray]:
    """A policy for `evaluate.rollout`, or for a robot.

    Args, Raises: as `load_run`.

    Returns:
      (observation, instruction) -> f32[chunk, A] actions in the data set's units. The observation is
      {"image_primary": uint8[H, W, 3], "proprio": f32[P] in the data set's units}, of one moment.
    """
    trained = load_run(run, step)
    statistics, data = trained.built.statistics, trained.config.data
    expected = {
        "image_primary": (data.image_size, data.image_size, 3),
        "proprio": statistics.proprio.mean.shape,
    }

    def policy(observation: Mapping[str, np.ndarray], instruction: str) -> np.ndarray:
        for name, shape in expected.items():
            if np.shape(observation[name]) != shape:
                raise ValueError(
                    f"policy: {name} has shape {np.shape(observation[name])}, but {run} was trained on {shape}."
                )
        # Where the model looks at several moments, those before the present one are marked as missing.
        pad = np.arange(data.window) == data.window - 1
        window = {
            "image_primary": np.asarray(observation["image_primary"], np.uint8),
            "proprio": statistics.normalise_proprio(np.asarray(observation["proprio"], np.float32)),
        }
        batch = {
            "observation": {
                **{name: np.stack([x] * data.window)[None] for name, x in window.items()},
                "timestep_pad_mask": pad[None],
            },
            "task": {"instruction": np.asarray([instruction], object)},
        }
        return statistics.unnormalise_action(trained.predict(trained.params, batch)[0])

    return policy
