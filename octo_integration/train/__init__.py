"""Training: the loop for any model, `fit`, and `maps-vla finetune` on it."""

from octo_integration.config import LogConfig, MeshConfig
from octo_integration.train.fit import Fitted, fit

__all__ = ["Fitted", "LogConfig", "MeshConfig", "fit"]
