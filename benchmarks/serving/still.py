"""A policy that computes nothing, and its server."""

import asyncio
from multiprocessing.connection import Connection

import numpy as np

from octo_integration.serve.names import PROTOCOL, spellings
from octo_integration.serve.server import Limits, Service, run_server


class Still:
    """A policy that does not move."""

    inputs = {"image_primary": (), "image_wrist": (), "proprio": ()}
    actions = np.zeros((8, 7), np.float32)

    def reset(self) -> None:
        """Nothing."""

    def observe(self, observation: object) -> None:
        """Nothing."""

    def __call__(self, observation: object, instruction: str) -> np.ndarray:
        """No movement."""
        return self.actions


def serve(port: Connection) -> None:
    """A server's process; tells its port."""
    service = Service(Still, lambda actions: actions, spellings(Still.inputs), {"protocol": PROTOCOL})  # type: ignore[arg-type]
    asyncio.run(_serve(service, port))


async def _serve(service: Service, port: Connection) -> None:
    await run_server(service, "127.0.0.1", 0, asyncio.Event(), Limits(), port.send)
