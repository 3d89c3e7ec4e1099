"""One group of cases, timed in turn in this process: `worker.py '{"leaves": ..., ...}'` prints a line of JSON per case.

A process of its own, because the number of host devices and what becomes of the heap are fixed at start-up.
"""

import json
import statistics
import sys
import time
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks import hlo
from benchmarks.optimizer_step import cases
from octo_integration.processes.heap import keep_heap
from octo_integration.state import sharding


def measure(
    names: list[str], leaves: int, parameters: float, dtype: str, devices: int, rows: int, repeats: int
) -> list[dict[str, Any]]:
    """A row per optimizer: the medians over `repeats` rounds, in each of which every optimizer takes one step.

    Args:
      names: of `cases.OPTIMIZERS`; the first is what the others' times are divided by, round by round.
      leaves, parameters, dtype: of `cases.square`.
      devices: over which axis 0 of every leaf is split.
      rows: of `cases.table`, which takes the place of `cases.square` where it is not 0.
      repeats: rounds.
    """
    tree = cases.table(rows) if rows else cases.square(leaves, parameters, jnp.dtype(dtype))
    mesh = jax.make_mesh((devices,), ("fsdp",), devices=jax.devices()[:devices])
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("fsdp",), ()))

    def place(x: Any) -> NamedSharding:
        return split if x.ndim == 2 and x.shape[0] % devices == 0 else whole

    @jax.jit
    def values(seed: int) -> Any:
        keys = jax.random.split(jax.random.key(seed), len(tree))
        return {k: 0.02 * jax.random.normal(key, x.shape, x.dtype) for key, (k, x) in zip(keys, tree.items())}

    placed = {k: place(x) for k, x in tree.items()}
    grads = jax.device_put(values(1), placed)
    runs = {}
    for name in names:
        tx = cases.OPTIMIZERS[name]()
        params = jax.device_put(values(0), placed)
        state_at = jax.tree.map(place, jax.eval_shape(tx.init, params))
        if "host" in name:
            state_at = sharding.anchors_in(state_at, cases.HOST)
        state = jax.jit(tx.init, out_shardings=state_at)(params)
        shardings = jax.tree.map(lambda x: x.sharding, (params, state))
        step = jax.jit(cases.step_of(tx), donate_argnums=(0, 1), out_shardings=shardings)
        start = time.perf_counter()
        compiled = step.lower(params, state, grads).compile()
        runs[name] = [compiled, params, state, time.perf_counter() - start, []]
    for i in range(repeats + 2):
        for run in runs.values():
            start = time.perf_counter()
            run[1:3] = jax.block_until_ready(run[0](run[1], run[2], grads))
            if i >= 2:  # the first rounds touch memory for the first time
                run[4].append(time.perf_counter() - start)
    n = cases.size(tree)
    first = runs[names[0]][4]
    found = []
    for name, (compiled, _, state, seconds, times) in runs.items():
        cost = compiled.cost_analysis() or {}
        found.append(
            {
                "optimizer": name,
                "parameters": n,
                "ms": 1e3 * statistics.median(times),
                "ratio": statistics.median(a / b for a, b in zip(times, first)),
                "compile_seconds": round(seconds, 2),
                "temporaries": compiled.memory_analysis().temp_size_in_bytes / n * devices,
                "state": sum(x.nbytes for x in jax.tree.leaves(state)) / n,
                "accessed": cost.get("bytes accessed", float("nan")) / n * devices,
                "collectives": hlo.collectives(compiled.as_text()),
            }
        )
    return found


def bandwidth(parameters: float, repeats: int) -> float:
    """GB/s of x + 1 in place: bytes read and written, by the median step."""
    x = jnp.zeros(int(parameters), jnp.float32)
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    times = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        x = jax.block_until_ready(step(x))
        times.append(time.perf_counter() - start)
    return 2 * x.nbytes / float(np.median(times[2:])) / 1e9


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    if job.pop("kept_heap"):
        keep_heap()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="maps_optax estimates")
        rows = measure(**job)
    copied = bandwidth(1e8, job["repeats"])
    kind = {"backend": jax.default_backend(), "device": jax.devices()[0].device_kind}
    for row in rows:
        print(json.dumps({**row, **kind, "copy_gb_per_s": round(copied, 1)}))
