"""All that can be checked without reading an episode or a tensor: in seconds, where what follows may take hours."""

from typing import Any, NamedTuple

import jax

from octo_integration.config import FinetuneConfig
from octo_integration.state import lora
from octo_integration.state.methods import holding
from octo_integration.state.optimizer import make_optimizer
from octo_integration.state.origin import anchor_of
from octo_integration.state.setup import abstract_params, build, check_weights


class _Sizes(NamedTuple):
    """Stands in for the statistics of the data: the leaves that these sizes shape have no pretrained value."""

    action_dim: int = 1
    proprio_dim: int = 1


def check(config: FinetuneConfig, hosts: int = 1) -> None:
    """Model, tokenizer, adapters, strengths and optimizer, weights, data sets with their splits: in this order.

    Args:
      hosts: how many share the batches.

    Raises:
      FileNotFoundError, ValueError: one does not fit; in one line.
    """
    sizes: Any = _Sizes()
    built = build(config, sizes)
    shapes = abstract_params(config, built)
    tx = make_optimizer(config, holding(config, built.layers, shapes))
    jax.eval_shape(tx.init, lora.split(shapes)[0])
    check_weights(config, built.model.config, shapes)
    if (anchor := anchor_of(config)) is not config:
        check_weights(anchor, built.model.config, shapes)

    from octo_integration.data.sources import check_sources  # tensorflow, which takes seconds to import

    check_sources(config.data, config.eval_splits or (), hosts)
