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
    """What a program is lowered for."""

    devices: int  # over how many it splits arrays
    platform: str = ""  # one of JAX's names; empty where nothing is lowered, or for several


def by_devices(function: Callable[..., tuple[jax.Array, ...]], *args: jax.Array) -> list[jax.Array]:
    """`function(target, *args)`, which must be hashable, of the `Target` that a program is lowered for.

    Shapes of the results must be the same for any. Not to be differentiated through.
    """
    out = jax.make_jaxpr(functools.partial(function, Target(jax.device_count())))(*args).out_avals
    return _by_devices.bind(*args, function=function, out=tuple(out))


def split(
    whole: jax.Array, of_leaf: Callable[..., jax.Array], leaves: list[Any], common: Any, splits: np.ndarray, gpu: bool
) -> list[jax.Array]:
    """The numbers of all leaves, split into those of each.

    What follows from its own leaf's sums alone lets a TPU finish a leaf while it lies on the chip. A GPU has a kernel
    to start for each, and takes them from `whole`, as does a CPU, which compiles that part once.

    Args:
      whole: the numbers of the layers of all leaves, (n, rows).
      of_leaf: makes those of one leaf again, of its arguments and the common ones.
      leaves: the arguments of each leaf, a list of tuples.
      common: a tuple of further arguments.
      splits: where in `whole` another leaf begins.
      gpu: whether a GPU takes them from `whole` too.
    """
    return list(_split(whole, (leaves, common), of_leaf, tuple(map(int, splits)), gpu))


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4))
def _split(whole: jax.Array, args: Any, of_leaf: Any, splits: tuple[int, ...], gpu: bool) -> tuple[jax.Array, ...]:
    leaves, treedef = jax.tree_util.tree_flatten(jax.tree_util.tree_map(jnp.asarray, args))
    return tuple(by_devices(functools.partial(_split_on, treedef, of_leaf, splits, gpu), whole, *leaves))


@_split.defjvp
def _(of_leaf: Any, splits: tuple[int, ...], gpu: bool, primals: Any, tangents: Any) -> Any:
    return _split(*primals, of_leaf, splits, gpu), tuple(jnp.split(tangents[0], splits))


def _split_on(
    treedef: Any, of_leaf: Any, splits: tuple[int, ...], gpu: bool, target: Target, whole: jax.Array, *args: jax.Array
) -> tuple[jax.Array, ...]:
    on_gpu = target.platform in ("cuda", "rocm", "gpu")
    if target.platform == "tpu" or (on_gpu and not gpu):
        leaves, common = jax.tree_util.tree_unflatten(treedef, args)
        return tuple(of_leaf(*leaf, *common) for leaf in leaves)
    if on_gpu and hasattr(jax.lax, "optimization_barrier"):
        return tuple(jnp.split(jax.lax.optimization_barrier(whole), splits))
    if target.platform == "cpu" and hasattr(jax.lax, "optimization_barrier"):
        return _split_by_data(whole, splits)
    return tuple(jnp.split(whole, splits))


def _split_by_data(whole: jax.Array, splits: tuple[int, ...]) -> tuple[jax.Array, ...]:
    """Slices whose place is data.

    XLA's CPU compiler takes a slice into the kernel that reads it, and a place known to it into the kernel's code: it
    compiles as many kernels as there are leaves. Those that differ in their data alone, it compiles once.
    """
    starts, ends = (0, *splits), (*splits, whole.shape[0])
    # Two numbers each: an array of one, or of equal ones, is a part of the code too.
    places = jax.lax.optimization_barrier([np.asarray([start, start + 1], np.uint32) for start in starts])
    rest = whole.shape[1:]
    return tuple(
        jax.lax.dynamic_slice(whole, (place[0], *[np.uint32(0)] * len(rest)), (end - start, *rest))
        for place, start, end in zip(places, starts, ends)
    )


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
    target = Target(_devices(module.axis_context), platforms[0] if len(platforms) == 1 else "")
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
