"""Floating-point operations of a function's matrix products, whatever compiler it will meet."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def flops(function: Callable[..., Any], *arguments: Any) -> int:
    """Two per multiply-add, from the traced function; a loop's body counts once per turn, which compilers do not do.

    Args:
      function: without convolutions, which are not counted, and without a `cond` or `while` around products, whose
        turns a trace does not tell.
      arguments: arrays or `jax.ShapeDtypeStruct`s.
    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr: Jaxpr) -> int:
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            left: Any = eqn.invars[0].aval
            out: Any = eqn.outvars[0].aval
            total += 2 * math.prod(out.shape) * math.prod(left.shape[i] for i in contracted)
        turns = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        for value in eqn.params.values():
            if isinstance(value, (ClosedJaxpr, Jaxpr)):
                total += turns * _count(value.jaxpr if isinstance(value, ClosedJaxpr) else value)
    return total
