"""LayerStacks of real models: which leaf sits where in the stack."""

from maps_optax.presets._octo import octo
from maps_optax.presets._openpi import openpi
from maps_optax.presets._paligemma import paligemma
from maps_optax.presets._prismatic import prismatic
from maps_optax.presets._vla import vla

__all__ = ["octo", "openpi", "paligemma", "prismatic", "vla"]
