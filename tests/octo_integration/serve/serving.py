"""A server for tests, in a thread, of a policy that shows what it was asked."""

import asyncio
import contextlib
import threading
import time

import numpy as np

from octo_integration.serve.names import PROTOCOL, spellings
from octo_integration.serve.server import Limits, Service, run_server

CHUNK = 5
NO_KEY = Limits()


class Echo:
    """Its actions say how often it was asked since its reset, how many moments it has seen, and the sum of proprio."""

    inputs = {"image_primary": (8, 8, 3), "proprio": (4,)}
    delay = 0.0

    def __init__(self):
        self.reset()

    def reset(self):
        self.asked = self.seen = 0

    def observe(self, observation):
        if not any(name.startswith("image_") for name in observation):
            raise ValueError("policy: no image;\n give one.")
        self.seen += 1

    def __call__(self, observation, instruction):
        self.observe(observation)
        if instruction == "fail":
            raise RuntimeError("a secret of the server's")
        time.sleep(self.delay)
        self.asked += 1
        total = np.sum(observation.get("proprio", np.zeros(4)))
        row = [self.asked, self.seen, total, len(instruction)]
        return np.tile(np.asarray(row, np.float32), (CHUNK, 1))


def service(make=Echo, own=lambda actions: actions, window=1):
    metadata = {"protocol": PROTOCOL, "window": window, "chunk": CHUNK, "image_size": 8, "weights": "abc", "step": 7}
    return Service(make, own, spellings(make().inputs), metadata)


@contextlib.contextmanager
def serving(served=None, limits=NO_KEY):
    """ws://... of a running server, and a function that stops it."""
    ready, found = threading.Event(), {}

    async def main():
        found["loop"], found["stop"] = asyncio.get_running_loop(), asyncio.Event()

        def started(port):
            found["port"] = port
            ready.set()

        await run_server(served or service(), "127.0.0.1", 0, found["stop"], limits, started)

    def stop():
        found["loop"].call_soon_threadsafe(found["stop"].set)

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    assert ready.wait(10)
    try:
        yield f"ws://127.0.0.1:{found['port']}", stop
    finally:
        if thread.is_alive():
            stop()
        thread.join(20)
        assert not thread.is_alive()
