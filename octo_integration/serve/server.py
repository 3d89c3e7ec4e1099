"""A policy behind a websocket, as openpi's server is: metadata first, then an answer to every observation.

A connection is a robot: it has a history of its own, which a request with {"reset": true} forgets. What a client sends
is data alone; what is wrong with it comes back as a line of text, and the connection stays.
"""

import asyncio
import concurrent.futures
import contextlib
import hmac
import http
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from octo_integration.policy.policy import Policy
from octo_integration.serve import wire
from octo_integration.serve.names import OBSERVE, PROMPT, RESET, STANDARDISED, Names, translate

HEALTH = "/healthz"
GOING_AWAY = 1001
DRAIN = 30.0  # seconds that answers under way may still take


class Service(NamedTuple):
    """What is served.

    Attributes:
      make: a policy at the start of an episode, for one connection.
      own: its actions -> those of the data set's own convention.
      names: {the client's name: ours}; metadata: what a client is told first.
    """

    make: Callable[[], Policy]
    own: Callable[[np.ndarray], np.ndarray]
    names: Names
    metadata: Mapping[str, Any]


class Limits(NamedTuple):
    """What a client may ask of the server.

    Attributes:
      api_key: that it must send as `Authorization: Api-Key ...`; None: anyone may ask.
      message: bytes of a request; clients: at a time.
      patience: seconds that a handshake, or the answer to a ping, may take.
    """

    api_key: str | None = None
    message: int = 2**26
    clients: int = 64
    patience: float = 60.0


async def run_server(
    service: Service,
    host: str,
    port: int,
    stop: asyncio.Event,
    limits: Limits,
    started: Callable[[int], None],
) -> None:
    """Serves until `stop` is set, and then answers what is under way.

    Args:
      port: 0: any that is free. started: is told the port.

    Raises:
      OSError: the port is taken, or the host is not this machine's.
    """
    loop = asyncio.get_running_loop()
    asking: set[ServerConnection] = set()
    # One thread: requests of all clients are answered one after another, while the loop goes on with pings.
    with concurrent.futures.ThreadPoolExecutor(1) as thread:

        async def handle(client: ServerConnection) -> None:
            session = Session(service)
            with contextlib.suppress(ConnectionClosed):
                await client.send(wire.pack(service.metadata))
                async for message in client:
                    asking.add(client)
                    try:
                        await client.send(await loop.run_in_executor(thread, session.answer, message))
                    finally:
                        asking.discard(client)

        def admit(client: ServerConnection, request: Request) -> Response | None:
            return _admit(client, request, limits)

        async with serve(
            handle,
            host,
            port,
            process_request=admit,
            compression=None,
            max_size=limits.message,
            open_timeout=limits.patience,
            ping_timeout=limits.patience,
            server_header=None,
            logger=_quiet(),
        ) as server:
            started(next(iter(server.sockets)).getsockname()[1])
            await stop.wait()
            await _drain(server, asking)


class Session:
    """What one connection asks."""

    def __init__(self, service: Service) -> None:
        """At the start of an episode."""
        self._service, self._policy = service, service.make()

    def answer(self, message: str | bytes) -> str | bytes:
        """The answer to a frame; text is what is wrong with it."""
        begun = time.monotonic()
        try:
            answer = self._act(message)
        except ValueError as error:
            return " ".join(str(error).split())
        except Exception as error:  # a fault of ours must not end the other clients' work
            logging.getLogger(__name__).exception("an answer failed")
            return f"the server failed: {type(error).__name__}"
        return wire.pack({**answer, "server_timing": {"infer_ms": 1000 * (time.monotonic() - begun)}})

    def _act(self, message: str | bytes) -> dict[str, Any]:
        request = wire.unpack(message) if isinstance(message, bytes) else None
        if not isinstance(request, dict):
            raise ValueError("a request is a map of names to arrays, packed by msgpack, in a binary frame.")
        if request.get(RESET) is True:
            self._policy.reset()
            if request.keys() == {RESET}:
                return {RESET: True}
        given = translate(request, self._service.names)
        prompt = given.pop(PROMPT, None)
        observation = self._observation(given, request)
        if request.get(OBSERVE) is True:
            self._policy.observe(observation)
            return {OBSERVE: True}
        if not isinstance(prompt, str):
            raise ValueError(f"the request has no {PROMPT}; send the instruction as text, or an empty one.")
        actions = self._policy(observation, prompt)
        return {"actions": actions if request.get(STANDARDISED) is True else self._service.own(actions)}

    def _observation(self, given: Mapping[str, Any], request: Mapping[Any, Any]) -> dict[str, np.ndarray]:
        """What the policy takes; nothing is missing but what the client says is."""
        for name in self._policy.inputs:
            if name not in given:
                theirs = sorted(t for t, ours in self._service.names.items() if ours == name)
                sent = ", ".join(sorted(map(str, request)))
                raise ValueError(
                    f"the request has no {name}; send it as {' or '.join(theirs)}, or as null if there is none (got: "
                    f"{sent[:200]})."
                )
        present = {name: value for name, value in given.items() if value is not None}
        if strange := [name for name, value in present.items() if not isinstance(value, (np.ndarray, list))]:
            raise ValueError(f"{strange[0]} is no array.")
        arrays = {name: np.asarray(value) for name, value in present.items()}
        if arrays.get("proprio", np.zeros(1)).dtype.kind not in "iuf":
            raise ValueError("proprio is no vector of numbers.")
        return arrays


def _admit(client: ServerConnection, request: Request, limits: Limits) -> Response | None:
    if request.path == HEALTH:
        return client.respond(http.HTTPStatus.OK, "OK\n")
    given = request.headers.get("Authorization", "").encode()
    if limits.api_key is not None and not hmac.compare_digest(given, f"Api-Key {limits.api_key}".encode()):
        return client.respond(http.HTTPStatus.UNAUTHORIZED, "send the header Authorization: Api-Key KEY\n")
    if len(client.server.connections) >= limits.clients:
        return client.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, f"{limits.clients} clients are connected\n")
    return None


async def _drain(server: Server, asking: set[ServerConnection]) -> None:
    """Takes no more clients, lets those that wait have their answer, and closes."""
    server.close(close_connections=False)
    deadline = time.monotonic() + DRAIN
    await _close(server.connections - asking)
    while asking and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    await _close(set(server.connections))


async def _close(clients: Iterable[ServerConnection]) -> None:
    """All at once: one that has vanished takes seconds."""
    await asyncio.gather(*(client.close(GOING_AWAY, "the server stops") for client in clients))


def _quiet() -> logging.Logger:
    """Clients that leave, or that are no websocket, are nothing to print."""
    logger = logging.getLogger("websockets.server")
    logger.setLevel(logging.CRITICAL)
    return logger
