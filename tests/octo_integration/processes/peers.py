"""Runs of several real processes on one machine: `python peers.py SESSIONS`.

A session is {"processes": n, "devices": of each, "jobs": [...]}; a job, one run of `loop.finetune`, is {"out": folder,
"mesh": fields of MeshConfig, "sees": how many of the devices it uses, "stop": after how many steps the last process is
sent SIGTERM, or null, "copy": where the folder is copied afterwards, or null}. Processes are forked before JAX starts,
because importing everything takes as long as a run.
"""

import dataclasses
import itertools
import json
import os
import shutil
import signal
import socket
import sys
import traceback
from typing import Any

import jax

from octo_integration.config import FinetuneConfig, MapsConfig, MeshConfig, OptimizerConfig
from octo_integration.data import DataConfig
from octo_integration.logs import run_log
from octo_integration.model.sizes import CONFIGS
from octo_integration.processes import lifeline
from octo_integration.processes.distributed import VARIABLES
from octo_integration.state import sharding
from octo_integration.train import assemble, loop
from tests.octo_integration import micro_vla

STEPS = 50
LOG_EVERY = 5
CONFIGS["micro"] = dataclasses.replace(micro_vla.CONFIG, dinov2=None)
advance, make_mesh, make_train_step = run_log.RunLog.advance, sharding.make_mesh, assemble.make_train_step
steps_of: dict[jax.sharding.Mesh, Any] = {}


def config(job: dict[str, Any]) -> FinetuneConfig:
    return FinetuneConfig(
        out=job["out"],
        model="micro",
        weights=None,
        data=DataConfig(batch_size=8),
        optimizer=OptimizerConfig(lr=1e-4, warmup=5, steps=STEPS),
        # Above 1 a pull may overshoot, and rounding that decides a criterion near zero then grows.
        maps=MapsConfig(lambda_max=0.5),
        mesh=MeshConfig(**job["mesh"], min_size=1024),
        eval_splits=(),
        log_every=LOG_EVERY,
        save_every=STEPS,
    )


def compiled_once(loss: Any, tx: Any, like: Any, mesh: jax.sharding.Mesh, seed: int, nan_policy: Any) -> Any:
    """All runs of a process on one mesh take the same step, and compiling it is what takes the time."""
    if mesh not in steps_of:
        steps_of[mesh] = make_train_step(loss, tx, like, mesh, seed, nan_policy)
    return steps_of[mesh]


def finetune(job: dict[str, Any]) -> None:
    steps = itertools.count(1)

    def count(log: run_log.RunLog) -> None:
        advance(log)
        if next(steps) == job["stop"] and jax.process_index() == jax.process_count() - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    run_log.RunLog.advance = count  # type: ignore[method-assign]
    sharding.make_mesh = lambda mesh: make_mesh(mesh, jax.devices()[: job["sees"]])
    assemble.make_train_step = compiled_once
    outcome = loop.finetune(config(job))
    assert outcome.signal == (None if job["stop"] is None else signal.SIGTERM), outcome
    if job["copy"] and jax.process_index() == 0:
        shutil.copytree(job["out"], job["copy"])


def child(session: dict[str, Any], process: int, port: int) -> None:
    os.environ["XLA_FLAGS"] = (
        f"--xla_force_host_platform_device_count={session['devices']} --xla_backend_optimization_level=0"
    )
    values = (f"localhost:{port}", session["processes"], process)
    os.environ |= {name: str(value) for name, value in zip(VARIABLES.values(), values, strict=True)}
    for job in session["jobs"]:
        finetune(job)
    if jax.process_count() > 1:
        lifeline.finish()
        jax.distributed.shutdown()


def start(session: dict[str, Any], process: int, port: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        child(session, process, port)
        code = 0
    except BaseException:
        traceback.print_exc()
    os._exit(code)


if __name__ == "__main__":
    for each in json.loads(sys.argv[1]):
        with socket.create_server(("", 0)) as server:
            free = server.getsockname()[1]
        children = [start(each, process, free) for process in range(each["processes"])]
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
        assert not any(codes), codes
