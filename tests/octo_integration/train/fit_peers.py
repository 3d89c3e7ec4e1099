"""Calls of `fit` by two real processes: `python -m tests.octo_integration.train.fit_peers CALLS`.

A call is {"out": folder, "steps": n, "mesh": fields of MeshConfig, "stop": after how many steps the last process is
sent SIGTERM, or null, "spoil": what is different in the last process, or null}. Every process writes what its calls
ended with into OUT.PROCESS.json. They are forked before JAX starts, because importing everything takes as long.
"""

import itertools
import json
import os
import signal
import socket
import sys
import traceback
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import maps_optax as mx
from octo_integration.logs import run_log
from octo_integration.processes import distributed, lifeline
from octo_integration.train import MeshConfig, fit

PROCESSES, DEVICES, ROWS = 2, 2, 8
LAYERS = mx.LayerStack({"vision": {r"embed$": "first", r"blocks$": "stacked"}}, free=[r"^head$"])
advance = run_log.RunLog.advance


def params() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"embed": (16, 32), "blocks": (2, 32, 32), "head": (32, 4)}
    return {name: (rng.normal(size=shape) / np.sqrt(shape[-2])).astype(np.float32) for name, shape in shapes.items()}


def loss(params: Any, batch: Any, key: jax.Array) -> Any:
    x = batch["x"] @ params["embed"]
    for kernel in params["blocks"]:
        x = x + jnp.tanh(x @ kernel)
    error = jnp.mean((x @ params["head"] - batch["y"]) ** 2)
    return error + 0.01 * jax.random.uniform(key), {"largest": jnp.max(jnp.abs(x))}


def batches(n: int, part: int, parts: int) -> Any:
    """Batch n, n + 1, ...: of `parts` equal shares of its rows, the one of this process."""
    while True:
        x = np.random.default_rng(n).normal(size=(ROWS, 16)).astype(np.float32)
        rows = slice(part * ROWS // parts, (part + 1) * ROWS // parts)
        yield {"x": x[rows], "y": np.sin(x[rows, :4])}
        n += 1


def optimizer() -> Any:
    return mx.chain(optax.adamw(1e-3), mx.maps(LAYERS, 0.5))


def call(job: dict[str, Any]) -> dict[str, Any]:
    mesh = MeshConfig(**job["mesh"], min_size=64)
    distributed.start(mesh)
    last = jax.process_index() == jax.process_count() - 1
    start, given = params(), batches
    spoil = job["spoil"] if last else None
    if spoil == "params":
        start["blocks"][1, 0, 0] += 1e-3
    if spoil == "rows":
        given = lambda n, part, parts: ({k: x[1:] for k, x in b.items()} for b in batches(n, part, parts))  # noqa: E731
    steps = itertools.count(1)

    def count(log: run_log.RunLog) -> None:
        advance(log)
        if last and next(steps) == job["stop"]:
            os.kill(os.getpid(), signal.SIGTERM)

    run_log.RunLog.advance = count  # type: ignore[method-assign]
    found = fit(
        loss, start, optimizer(), lambda n: given(n, jax.process_index(), jax.process_count()),
        out=job["out"], steps=job["steps"], layers=LAYERS, mesh=mesh,
        measure=lambda now: {"norm": optax.global_norm(now)}, log_every=1, save_every=100, eval_every=3,
    )  # fmt: skip
    kernel = found.params["blocks"]
    return {"step": found.step, "held": kernel.addressable_shards[0].data.size / kernel.size}


def child(jobs: list[dict[str, Any]], process: int, port: int) -> None:
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={DEVICES} --xla_backend_optimization_level=0"
    values = (f"localhost:{port}", PROCESSES, process)
    os.environ |= {name: str(value) for name, value in zip(distributed.VARIABLES.values(), values, strict=True)}
    for job in jobs:
        try:
            said = call(job)
        except (SystemExit, ValueError) as error:
            said = {type(error).__name__: str(error)}
        with open(f"{job['out']}.{process}.json", "a") as file:
            file.write(json.dumps(said) + "\n")
    lifeline.finish()
    jax.distributed.shutdown()


def start(jobs: list[dict[str, Any]], process: int, port: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        child(jobs, process, port)
        code = 0
    except BaseException:
        traceback.print_exc()
    os._exit(code)


if __name__ == "__main__":
    with socket.create_server(("", 0)) as server:
        free = server.getsockname()[1]
    children = [start(json.loads(sys.argv[1]), process, free) for process in range(PROCESSES)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    assert not any(codes), codes
