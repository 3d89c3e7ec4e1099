"""What depends on how many devices a program is for: known when it is lowered, not yet when it is traced.

`jax.device_count()` says how many the process sees. A program for one of them, and a body of `shard_map` or `pmap`,
has whole arrays on one device all the same.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import batching, mlir

try:
    from jax.extend.core import Primitive
except ImportError:  # JAX before 0.4.36
    from jax.core import Primitive  # type: ignore[attr-defined, no-redef]

_by_devices = Primitive("maps_by_devices")
_by_devices.multiple_results = True


class Target(NamedTuple):
    """What a program is lowered for: over how many devices it splits arrays, and whether they are GPUs."""

    devices: int
    gpu: bool = False


def by_devices(function: Callable[..., tuple[jax.Array, ...]], *args: jax.Array) -> list[jax.Array]:
    """`function(target, *args)`, which must be hashable, of the `Target` that a program is lowered for.

    Shapes of the results must be the same for any. Not to be differentiated through.
    """
    out = jax.make_jaxpr(functools.partial(function, Target(jax.device_count())))(*args).out_avals
    return _by_devices.bind(*args, function=function, out=tuple(out))


def split(own: list[jax.Array], at_once: Callable[..., jax.Array], args: Any, splits: np.ndarray) -> list[jax.Array]:
    """`at_once(*args)`, the numbers of all leaves, split into those of each; or `own`, the same computed leaf by leaf.

    What follows from its own leaf's sums alone lets the compiler finish a leaf while it lies in cache, or on a TPU's
    chip. A GPU has a kernel to start for each, and takes the vector, which the barrier keeps whole. Others never see
    it: that alone makes XLA's CPU compiler keep a copy of leaves that are stacked.
    """
    if not hasattr(jax.lax, "platform_dependent"):
        return own
    return list(_split(tuple(own), args, at_once, tuple(map(int, splits))))


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _split(own: tuple[jax.Array, ...], args: Any, at_once: Any, splits: tuple[int, ...]) -> tuple[jax.Array, ...]:
    leaves, treedef = jax.tree_util.tree_flatten(jax.tree_util.tree_map(jnp.asarray, (own, args)))
    return tuple(by_devices(functools.partial(_split_on, treedef, at_once, splits), *leaves))


_split.defjvp(lambda at_once, splits, primals, tangents: (_split(*primals, at_once, splits), tangents[0]))


def _split_on(treedef: Any, at_once: Any, splits: tuple[int, ...], target: Target, *leaves: jax.Array) -> Any:
    own, args = jax.tree_util.tree_unflatten(treedef, leaves)
    return tuple(jnp.split(jax.lax.optimization_barrier(at_once(*args)), splits)) if target.gpu else own


def _devices(context: Any) -> int:
    """Over how many devices the compiler splits the arrays of a module."""
    mesh = getattr(context, "mesh", None)
    if mesh is not None:  # a body of shard_map: over the axes that it leaves to the compiler
        return math.prod(n for axis, n in mesh.shape.items() if axis not in context.manual_axes)
    devices = getattr(context, "device_assignment", None)
    if devices is not None:
        return len(devices)
    return getattr(context, "num_devices", 1)  # neither in the body of an old pmap


def _lower(context: Any, *args: Any, function: Callable[..., Any], out: Any) -> Any:
    del out
    module = context.module_context
    platforms = getattr(module, "platforms", None) or (module.platform,)
    target = Target(_devices(module.axis_context), all(name in ("cuda", "rocm", "gpu") for name in platforms))
    return mlir.lower_fun(functools.partial(function, target), multiple_results=True)(context, *args)


def _batch(args: Any, axes: Any, *, function: Callable[..., Any], out: Any) -> Any:
    results = by_devices(functools.partial(_mapped, function, tuple(axes)), *args)
    return results, [0] * len(out)


def _mapped(function: Callable[..., Any], axes: tuple[Any, ...], target: Target, *args: Any) -> Any:
    return jax.vmap(functools.partial(function, target), in_axes=axes)(*args)


_by_devices.def_impl(lambda *args, function, out: list(function(Target(1), *args)))  # under jax.disable_jit
_by_devices.def_abstract_eval(lambda *args, function, out: list(out))
batching.primitive_batchers[_by_devices] = _batch
mlir.register_lowering(_by_devices, _lower)
if not hasattr(jax, "shard_map"):  # an older one must be told that its results vary as its arguments do
    from jax.experimental import shard_map

    for register in ("register_standard_check", "register_standard_rewrite"):
        getattr(shard_map, register, lambda primitive: None)(_by_devices)
