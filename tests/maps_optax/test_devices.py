"""What lies on one device is computed as there, whatever the process sees; no cost grows as the layers squared."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

WORKER = Path(__file__).with_name("devices_worker.py")


@pytest.fixture(scope="module")
def results() -> dict[int, Any]:
    """What the worker finds with 1 and with 8 devices."""
    environment = {**os.environ, "PYTHONPATH": str(WORKER.parents[2])}
    found = {}
    for count in (1, 8):
        command = [sys.executable, str(WORKER), str(count)]
        found[count] = json.loads(subprocess.check_output(command, env=environment, text=True).splitlines()[-1])
    return found


@pytest.mark.skipif(not hasattr(jax.lax, "platform_dependent"), reason="this JAX reads operands once per sum")
@pytest.mark.parametrize("where", ["jit", "vmap", "pmap", "shard_map"])
def test_devices_that_hold_nothing_of_a_leaf_cost_nothing(results: Any, where: str) -> None:
    if where == "shard_map" and not hasattr(jax, "shard_map"):
        pytest.skip("this JAX has no jax.shard_map")
    one, eight = (results[count]["words"][where] for count in (1, 8))
    assert eight == pytest.approx(one, rel=1e-3)
    assert one <= 10.1  # u, g, θ, θ0, once for the sums and once for the step, and the update


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("what", ["l2", "mars", "adapters"])
@pytest.mark.parametrize("cost", ["flops", "bytes"])
def test_a_step_costs_in_proportion_to_the_layers_that_a_leaf_stacks(
    results: Any, devices: int, what: str, cost: str
) -> None:
    smallest, middle, largest = (row[cost] for row in results[devices]["sweep"][what])
    assert middle == pytest.approx(10 * smallest, rel=0.05)
    assert largest == pytest.approx(10 * middle, rel=0.05)
