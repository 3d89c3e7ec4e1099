"""One process of a run of several: `python peer.py JOBS`, a JSON list of runs to make one after the other.

A job is {"out": folder, "mesh": fields of MeshConfig, "devices": how many this run sees, "stop": step at which the last
process is sent SIGTERM, or null}.
"""

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import time; T0=time.time()
import jax

from octo_integration.config import FinetuneConfig, MeshConfig, OptimizerConfig
from octo_integration.data import DataConfig
from octo_integration.model.sizes import CONFIGS
from octo_integration.train import distributed, logs, loop, sharding
from tests.octo_integration.train import micro_vla

STEPS = 50
CONFIGS["micro"] = dataclasses.replace(micro_vla.CONFIG)
advance, make_mesh = logs.RunLog.advance, sharding.make_mesh


def config(job: dict[str, Any]) -> FinetuneConfig:
    return FinetuneConfig(
        out=job["out"],
        model="micro",
        weights=None,
        data=DataConfig(batch_size=8),
        optimizer=OptimizerConfig(lr=1e-3, warmup=5, steps=STEPS),
        mesh=MeshConfig(**job["mesh"], min_size=64),
        eval_splits=(),
        log_every=1,
        save_every=STEPS,
    )


def finetune(job: dict[str, Any]) -> None:
    def stop(log: logs.RunLog) -> None:
        advance(log)
        steps.append(None)
        if len(steps) == job["stop"] and jax.process_index() == jax.process_count() - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    steps: list[None] = []
    logs.RunLog.advance = stop  # type: ignore[method-assign]
    sharding.make_mesh = lambda mesh: make_mesh(mesh, jax.devices()[: job["devices"]])
    outcome = loop.finetune(config(job))
    assert outcome.signal == (None if job["stop"] is None else signal.SIGTERM), outcome


for each in json.loads(sys.argv[1]):
    import time
    t = time.time(); print("imports",t-T0)
    finetune(each)
    print("took", time.time() - t, flush=True)
