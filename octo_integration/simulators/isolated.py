"""An environment in a process of its own, where tensorflow is not: both bring an LLVM, and Mesa's then crashes."""

import contextlib
import functools
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any, ParamSpec, TypeVar, cast

from octo_integration.simulators.protocol import Environment

P = ParamSpec("P")
E = TypeVar("E", bound=Environment)

CLOSING_SECONDS = 10


@contextlib.contextmanager
def isolated_env(make: Callable[P, E], *args: P.args, **options: P.kwargs) -> Iterator[E]:
    """make(*args, **options), whose methods run in another process; a call takes 0.2 ms more.

    Raises:
      ValueError, SimulatorMissing, RenderingUnavailable: as from `make`.
      ChildProcessError: the process died.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, functools.partial(make, *args, **options)), daemon=True)
    process.start()
    there.close()  # so that the child's death is an end of file here
    try:
        _receive(here)
        yield cast(E, _Remote(here))
    finally:
        here.close()
        process.join(CLOSING_SECONDS)
        process.kill()


class _Remote:
    """Forwards what is asked of it: methods as calls, `instruction` as a value."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def instruction(self) -> str:
        return cast(str, self._ask("instruction"))

    def __getattr__(self, name: str) -> Any:
        return functools.partial(self._ask, name)

    def _ask(self, name: str, *args: Any, **options: Any) -> Any:
        with _death_is_an_error():
            self._connection.send((name, args, options))
        return _receive(self._connection)


def _receive(connection: Connection) -> Any:
    with _death_is_an_error():
        result, error = connection.recv()
    if error is not None:
        raise error
    return result


@contextlib.contextmanager
def _death_is_an_error() -> Iterator[None]:
    try:
        yield
    except (EOFError, BrokenPipeError, ConnectionResetError):
        raise ChildProcessError("the simulator's process died (out of memory?).") from None


def _serve(connection: Connection, make: Callable[[], Environment]) -> None:
    """Answers requests until the other end is closed."""
    # Ctrl-C reaches the whole process group; the parent decides what follows.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(EOFError, BrokenPipeError):
        try:
            env = make()
        except Exception as error:
            connection.send((None, error))
            return
        with env:
            connection.send((None, None))
            while True:
                name, args, options = connection.recv()
                try:
                    found = getattr(env, name)
                    result = found(*args, **options) if callable(found) else found
                except Exception as error:
                    connection.send((None, error))
                else:
                    connection.send((result, None))
