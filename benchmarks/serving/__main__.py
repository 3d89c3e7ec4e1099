"""What a websocket on localhost adds to the call of a policy: round trips, and bare calls between them.

python -m benchmarks.serving [--calls 1000]

The policy computes nothing, so that all of a round trip but its own call is the protocol's. Results: results.json here.
"""

import argparse
import json
import multiprocessing
import os
import time
from pathlib import Path

import numpy as np

from benchmarks.serving.still import Still, serve
from octo_integration.serve.client import connected

RESULTS = Path(__file__).with_name("results.json")
SIZES = (64, 224)
SHARES = {"p50": 50, "p99": 99}


def measure(url: str, size: int, calls: int) -> dict[str, float]:
    """Milliseconds that a round trip takes beyond a bare call, for two images of that size and 8 numbers."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    observation = {"image_primary": images[0], "image_wrist": images[1], "proprio": np.zeros(8, np.float32)}
    bare, added = Still(), []
    with connected(url) as policy:
        for _ in range(calls + 20):
            begun = time.perf_counter()
            bare(observation, "open the drawer")
            between = time.perf_counter()
            policy(observation, "open the drawer")
            added.append(time.perf_counter() - between - (between - begun))
    return {name: round(1e3 * float(np.percentile(added[20:], share)), 3) for name, share in SHARES.items()}


def main() -> None:
    """Measures, writes and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=1000)
    calls = parser.parse_args().calls
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    theirs.close()
    url = f"ws://127.0.0.1:{ours.recv()}"
    rows = {f"2 x {size} x {size} x 3": measure(url, size, calls) for size in SIZES}
    server.kill()
    server.join()
    found = {"milliseconds added": rows, "calls": calls, "load before": round(os.getloadavg()[0], 2)}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
