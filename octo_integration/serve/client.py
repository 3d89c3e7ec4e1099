"""The other end: a policy that asks a server which speaks openpi's protocol."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from websockets.exceptions import InvalidHandshake, InvalidURI, WebSocketException
from websockets.sync.client import ClientConnection, connect

from octo_integration.serve import wire
from octo_integration.serve.names import OBSERVE, OPENPI, PROMPT, PROTOCOL, RESET, STANDARDISED

PATIENCE = 300.0  # seconds for an answer; the first one may compile


class RemotePolicy:
    """Acts as a server says; `evaluate.rollout.Policy`. Each has a connection of its own, and so a history there.

    Our own servers are told of resets and, where they look back, of the moments that they need, and asked for
    standardised actions. Others keep no history, and their actions are converted here.

    Attributes:
      about: what one of our servers tells of itself; {} of another's.
    """

    def __init__(
        self,
        connection: ClientConnection,
        url: str,
        standard: Callable[[np.ndarray], np.ndarray] | None = None,
        names: Mapping[str, str] | None = None,
    ) -> None:
        """Reads what the server tells first.

        Args:
          standard: another's actions -> those of standardised episodes; default: they are.
          names: {ours: the server's} of what is sent; default: ours to ours, those of its LIBERO example to openpi's.

        Raises:
          ValueError: it speaks another protocol.
        """
        self._connection, self._url, self._standard = connection, url, standard
        told = self._read()
        self._ours = told.get("protocol") == PROTOCOL
        self.about = told if self._ours else {}
        self._names = names
        self.looks_back = int(self.about.get("window", 1)) - 1
        self._fresh = True

    def reset(self) -> None:
        """An episode begins."""
        self._fresh = True

    def observe(self, observation: Mapping[str, np.ndarray]) -> None:
        """A moment at which an action of the last chunk is carried out."""
        if self.looks_back:
            self._ask({**self._request(observation), OBSERVE: True})

    def __call__(self, observation: Mapping[str, np.ndarray], instruction: str) -> np.ndarray:
        """The next actions, f32[chunk, A] of standardised episodes.

        Raises:
          ValueError: the server refuses the request, or its answer has no actions.
        """
        actions = self._ask(
            {**self._request(observation), (self._names or OPENPI).get(PROMPT, PROMPT): instruction}
        ).get("actions")
        if not isinstance(actions, np.ndarray) or actions.ndim != 2:
            raise ValueError(f"{self._url} answered without a chunk of actions.")
        chunk = actions.astype(np.float32)
        return chunk if self._ours or self._standard is None else self._standard(chunk)

    def _request(self, observation: Mapping[str, np.ndarray]) -> dict[str, Any]:
        names = self._names or ({name: name for name in observation} if self._ours else OPENPI)
        request: dict[str, Any] = {names[name]: x for name, x in observation.items() if name in names}
        if self._ours:
            request |= {STANDARDISED: True} | ({RESET: True} if self._fresh else {})
        self._fresh = False
        return request

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        try:
            self._connection.send(wire.pack(request))
        except WebSocketException as error:
            raise ConnectionError(f"{self._url} went away: {error}") from None
        return self._read()

    def _read(self) -> dict[str, Any]:
        try:
            answer = self._connection.recv(timeout=PATIENCE)
        except (WebSocketException, TimeoutError) as error:
            raise ConnectionError(f"{self._url} went away: {error or type(error).__name__}") from None
        if isinstance(answer, str):
            raise ValueError(f"{self._url} answered: {''.join(answer.strip().splitlines()[-1:])}")
        found = wire.unpack(answer)
        if not isinstance(found, dict):
            raise ValueError(f"{self._url} does not speak openpi's protocol: its message is no map.")
        return found


@contextlib.contextmanager
def connected(
    url: str,
    standard: Callable[[np.ndarray], np.ndarray] | None = None,
    names: Mapping[str, str] | None = None,
    api_key: str | None = None,
) -> Iterator[RemotePolicy]:
    """A policy of the server at ws://host:port, until the context ends; the other arguments are `RemotePolicy`'s.

    Raises:
      ConnectionError, ValueError: nobody answers there, or not in this protocol.
    """
    headers = None if api_key is None else {"Authorization": f"Api-Key {api_key}"}
    try:
        connection = connect(url, compression=None, max_size=None, additional_headers=headers)
    except InvalidURI:
        raise ValueError(f"policy is {url!r}; give ws://host:port.") from None
    except (OSError, InvalidHandshake) as error:
        raise ConnectionError(f"no policy answers at {url} ({error}); start one with maps-vla serve.") from None
    with connection:
        yield RemotePolicy(connection, url, standard, names)
