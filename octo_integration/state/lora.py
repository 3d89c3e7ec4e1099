"""Fine-tuning by low-rank adapters (arXiv 2106.09685): what is trained, what is frozen, and how they become one again.

A tree that holds adapters (leaves lora_a and lora_b beside a kernel) is trained in them and in its fresh modules alone.
The rest is frozen: kept in bfloat16, without gradient, moments or anchor.

Checkpoints keep the frozen leaves too. A reference to the pretrained file would save space, but a run could then not be
read without that file, nor on another machine; and a copy in bfloat16 costs less than the moments of full fine-tuning.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from octo_integration.model.config import FRESH, LoraConfig

Tree = Any
Flat = dict[tuple[str, ...], Any]

ADAPTERS = ("lora_a", "lora_b")
FROZEN_DTYPE = jnp.bfloat16


def check_targets(params: Tree, config: LoraConfig) -> None:
    """Raises ValueError where a target of `config` names no kernel of `params`: nothing is left out unnoticed."""
    kernels = ["/".join((*path[:-1], "kernel")) for path in flatten_dict(params) if path[-1] == "lora_a"]
    for target in config.targets if config.rank else ():
        if not any(re.match(target, kernel) for kernel in kernels):
            raise ValueError(
                f"lora: target {target!r} matches no kernel; paths are such as language/blocks/attn/query/kernel "
                "(language/blocks_0/... where blocks are not scanned)."
            )


def split(params: Tree) -> tuple[Tree, Tree]:
    """(trained, frozen): everything and nothing where there are no adapters. Frozen float leaves become bfloat16.

    Args:
      params: nested dicts of arrays or `jax.ShapeDtypeStruct`s.
    """
    flat: Flat = flatten_dict(params)
    if not any(map(_is_adapter, flat)):
        return params, {}
    trained = {path: leaf for path, leaf in flat.items() if _is_adapter(path) or path[0] in FRESH}
    frozen = {path: _frozen(leaf) for path, leaf in flat.items() if path not in trained}
    return unflatten_dict(trained), unflatten_dict(frozen)


def whole(*parts: Tree) -> Tree:
    """One tree of nested dicts that have no leaf in common: the inverse of `split`, but for the precision."""
    flat: Flat = {}
    for part in parts:
        flat |= flatten_dict(part)
    return unflatten_dict(flat)


def adapters(params: Tree) -> Tree:
    """The adapters alone."""
    return unflatten_dict({path: leaf for path, leaf in flatten_dict(params).items() if _is_adapter(path)})


def base(params: Tree) -> Tree:
    """Everything but the adapters."""
    return unflatten_dict({path: leaf for path, leaf in flatten_dict(params).items() if not _is_adapter(path)})


def merge_lora(params: Tree, lora: LoraConfig) -> Tree:
    """The model without adapters that computes the same: W + (alpha / rank) A B, all float32.

    Args:
      params: as the model has them; a kernel [*, in..., out...] with lora_a [*, in, rank] and lora_b [*, rank, out]
        beside it, * the axis of stacked blocks where there is one.
      lora: that the model was made with.
    """
    flat: Flat = flatten_dict(params)
    merged = {path: leaf.astype(jnp.float32) for path, leaf in flat.items() if not _is_adapter(path)}
    for path, a in flat.items():
        if path[-1] == "lora_a":
            kernel, b = (*path[:-1], "kernel"), flat[path[:-1] + ("lora_b",)]
            update = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST).reshape(merged[kernel].shape)
            merged[kernel] = merged[kernel] + lora.alpha / lora.rank * update
    return unflatten_dict(merged)


def _is_adapter(path: tuple[str, ...]) -> bool:
    return path[-1] in ADAPTERS


def _frozen(leaf: Any) -> Any:
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(leaf.shape, FROZEN_DTYPE, sharding=leaf.sharding)
    return leaf.astype(FROZEN_DTYPE)
