"""The methods: what holds the weights near theta0. One file each, and one entry in the table."""

from collections.abc import Mapping
from typing import NamedTuple

import maps_optax as mx
from octo_integration.config import FinetuneConfig
from octo_integration.state import lora
from octo_integration.state.methods import adam, adapters, l2_sp, maps
from octo_integration.state.methods.common import Hold, Holding, Tree

__all__ = ["METHODS", "Hold", "Method", "holding"]


class Method(NamedTuple):
    """A method.

    Attributes:
      full: of a run that trains all parameters.
      adapted: of one that trains adapters; None: the method does not hold them.
    """

    full: Holding
    adapted: Holding | None = None


# By the names of `config.Method`.
METHODS: Mapping[str, Method] = {
    "maps": Method(maps.full, adapters.held),
    "adam": Method(adam.full),
    "l2_sp": Method(l2_sp.full),
}


def holding(config: FinetuneConfig, layers: mx.LayerStack, shapes: Tree) -> Hold:
    """What the method that `config` names is to its run.

    Args:
      layers: the model's.
      shapes: all of its parameters, arrays or `jax.ShapeDtypeStruct`s.

    Raises:
      ValueError: strengths and parameters do not fit; names the leaf or the rule.
    """
    trained, frozen = lora.split(shapes)
    method = METHODS[config.maps.method]
    if not frozen:
        return method.full(config, layers, shapes)
    if method.adapted is None or config.maps.adapters == "free":
        return adapters.free(method.full(config, layers, trained), layers, shapes)
    return method.adapted(config, layers, shapes)
