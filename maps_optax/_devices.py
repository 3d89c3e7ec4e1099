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
    at_once: jax.Array, of_leaf: Callable[..., jax.Array], leaves: list[Any], common: Any, splits: np.ndarray
) -> list[jax.Array]:
    """A vector of the layers of all leaves, `at_once`, split into those of each leaf.

    Args:
      at_once: the numbers of all layers, (n, rows).
      of_leaf: makes those of one leaf, of its arguments and the common ones.
      leaves: its arguments, leaf by leaf.
      common: a tuple.
      splits: where in the vector a new leaf starts.
    """
    return list(_split(at_once, (leaves, common), of_leaf, tuple(map(int, splits))))


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _split(at_once: jax.Array, args: Any, of_leaf: Any, splits: tuple[int, ...]) -> tuple[jax.Array, ...]:
    args, treedef = jax.tree_util.tree_flatten(jax.tree_util.tree_map(jnp.asarray, args))
    return tuple(by_devices(functools.partial(_split_on, treedef, of_leaf, splits), at_once, *args))


@_split.defjvp
def _(of_leaf: Any, splits: tuple[int, ...], primals: Any, tangents: Any) -> Any:
    return _split(*primals, of_leaf, splits), tuple(jnp.split(tangents[0], splits))


def _split_on(
    treedef: Any, of_leaf: Any, splits: tuple[int, ...], target: Target, at_once: jax.Array, *args: jax.Array
) -> tuple[jax.Array, ...]:
    """The parts of the vector, in the way that is best for what the program is lowered for.

    A TPU may finish a leaf while it lies on the chip, if what it does follows from its own sums alone. A GPU has a
    kernel to start for each leaf, and takes the vector, which the barrier keeps whole. A CPU's compiler writes the place
    in the vector into the kernel that reads it, and compiles as many as there are leaves; a place that is data to it
    leaves one for all leaves of a shape.
    """
    if target.platform == "tpu":
        leaves, common = jax.tree_util.tree_unflatten(treedef, args)
        return tuple(of_leaf(*leaf, *common) for leaf in leaves)
    if target.platform in ("cuda", "rocm", "gpu"):
        return tuple(jnp.split(jax.lax.optimization_barrier(at_once), splits))
    if target.platform != "cpu" or not hasattr(jax.lax, "optimization_barrier"):
        return tuple(jnp.split(at_once, splits))
    starts = (0, *splits)
    sizes = np.diff((*starts, at_once.shape[0]))
    # Not one number, nor equal ones, which the compiler takes for a part of the code.
    places = jax.lax.optimization_barrier([np.asarray([i, i + 1], np.uint32) for i in starts])
    rest = at_once.shape[1:]
    return tuple(
        jax.lax.dynamic_slice(at_once, (place[0], *[np.uint32(0)] * len(rest)), (int(n), *rest))
        for place, n in zip(places, sizes)
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
