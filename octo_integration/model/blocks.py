"""A tower's blocks in turn: stacked in one loop or unrolled, kept or computed again in the backward pass."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from octo_integration.model.config import Build, Remat

# Remat "dots" keeps what is dear to compute again: matrix products with weights, but not those of attention.
POLICIES: dict[Remat, Callable[..., Any] | None] = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": None,
}


def run_blocks(
    block: type[nn.Module], config: Any, build: Build, x: jax.Array, *shared: Any, initializing: bool, unread: int = 0
) -> jax.Array:
    """x through `config.depth` blocks, whose parameters are `blocks` or `blocks_0`, `blocks_1`, ...; in `nn.compact`.

    Args:
      block: `block(config, build, name=...)(x, *shared) -> (x, None)`.
      shared: arrays that every block gets.
      initializing: the caller's `is_initializing()`.
      unread: this many last blocks have parameters and are not run.
    """
    if build.remat != "none":
        # A loop cannot merge what it computes again with what it computed, so nothing need prevent it.
        block = nn.remat(block, prevent_cse=not build.scan, policy=POLICIES[build.remat])
    run = config.depth if initializing else config.depth - unread
    if not build.scan:
        for i in range(run):
            x, _ = block(config, build, name=f"blocks_{i}")(x, *shared)
        return x
    scanned: Any = nn.scan(
        block, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=nn.broadcast, length=run
    )
    if run < config.depth:
        scanned = nn.map_variables(scanned, "params", trans_in_fn=lambda p: jax.tree.map(lambda leaf: leaf[:run], p))
    x, _ = scanned(config, build, name="blocks")(x, *shared)
    return x
