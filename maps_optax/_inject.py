"""Functions as arguments, kept from `optax.inject_hyperparams`, which takes each for a schedule of the step count."""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from maps_optax import _strength

F = TypeVar("F", bound=Callable[..., Any])


class Function:
    """A function that is no callable, so that `optax.inject_hyperparams` hands it on as it is."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function


def unwrap(argument: Any) -> Any:
    """The function that was wrapped, or whatever else the argument is."""
    return argument.function if isinstance(argument, Function) else argument


def takes_functions(*names: str, of_params: str = "") -> Callable[[F], F]:
    """Marks which arguments of a transformation's factory are functions, never schedules of the step count.

    `inject_hyperparams` binds arguments by the factory's signature, so this is where they are wrapped. The argument
    `of_params` may be a function of params or, there, a schedule: it is the former where a tree makes it give a tree.
    """

    def mark(factory: F) -> F:
        class Signature(inspect.Signature):
            def bind(self, *args: Any, **kwargs: Any) -> inspect.BoundArguments:
                bound = super().bind(*args, **kwargs)
                for name, value in bound.arguments.items():
                    if callable(value) and (name in names or (name == of_params and _gives_tree(value))):
                        bound.arguments[name] = Function(value)
                return bound

        plain = inspect.signature(factory)
        factory.__signature__ = Signature(  # type: ignore[attr-defined]
            list(plain.parameters.values()), return_annotation=plain.return_annotation
        )
        return factory

    return mark


def _gives_tree(function: Callable[..., Any]) -> bool:
    try:
        return not _strength.is_number(function({"leaf": np.zeros((1, 1), np.float32)}))
    except Exception:  # a schedule cannot count with a tree; a function of other trees complains of the count, aloud
        return False
