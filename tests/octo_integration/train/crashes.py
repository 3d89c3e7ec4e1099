"""Runs of `maps-vla` that are killed: `python -m tests.octo_integration.train.crashes`; each line of stdin is a list of
jobs, which are started at once.

A job is {"arguments": of maps-vla, "out": run directory, "log": file of its stdout and stderr}, and perhaps "die": when
it kills itself, one of {"step": n} (when n steps are done), {"event": n} (before its n-th change of a file in out) and
{"seconds": s} (s after its first step); "signal": by what (SIGKILL); "instead": a command that runs in place of a
signal; "first": one that runs before all; "keepalive": in place of `lifeline.KEEPALIVE`. The answer is a line, for
each job {"code": exit code, negative for a signal; "ended": when, in seconds; "events": how many files it changed,
"seconds": from its first step on}.

Jobs are forked before JAX starts, because importing everything takes longer than a run. Nothing in the product knows of
this: a job counts Python's audit events and calls of the progress bar.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any

import jax
import tensorboardX  # noqa: F401
import tqdm  # noqa: F401
from jax._src import compiler

from octo_integration.cli import commands
from octo_integration.data import batches  # noqa: F401
from octo_integration.logs import run_log  # noqa: F401
from octo_integration.model.sizes import CONFIGS
from octo_integration.processes import lifeline  # noqa: F401
from octo_integration.train import loop  # noqa: F401
from tests.octo_integration import micro_vla

CHANGES = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "shutil.copyfile", "shutil.rmtree"}
CONFIGS["micro"] = micro_vla.CONFIG
CONFIGS["one_tower"] = dataclasses.replace(micro_vla.CONFIG, dinov2=None)
# Of several processes JAX lets only the first write the cache of compiled programs, where others find none of theirs.
compiler.distributed = types.SimpleNamespace(global_state=types.SimpleNamespace(process_id=0, client=None))
seen = {"events": 0, "steps": 0, "began": 0.0}


def watch(job: dict[str, Any]) -> None:
    """Counts, and sends the signal at the moment that the job names."""
    die, number = job.get("die", {}), job.get("signal", signal.SIGKILL)

    def now() -> None:
        if "instead" in job:
            subprocess.run(job["instead"], check=True)
        else:
            os.kill(os.getpid(), number)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in CHANGES and any(isinstance(a, str) and a.startswith(job["out"]) for a in arguments):
            seen["events"] += 1
            if seen["events"] == die.get("event"):
                now()

    advance = run_log.RunLog.advance

    def count(log: run_log.RunLog) -> None:
        advance(log)
        seen["steps"] += 1
        if seen["steps"] == 1:
            seen["began"] = time.monotonic()
            if "seconds" in die:
                threading.Timer(die["seconds"], now).start()
        if seen["steps"] == die.get("step"):
            now()

    sys.addaudithook(audit)
    run_log.RunLog.advance = count  # type: ignore[method-assign]


def child(job: dict[str, Any]) -> None:
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if "first" in job:
        subprocess.run(job["first"], check=True)
    lifeline.KEEPALIVE.update(job.get("keepalive", {}))
    watch(job)
    code = commands.main(job["arguments"])
    if code == 0:  # what Python's exit does
        lifeline.finish()
        jax.distributed.shutdown()
    told = {"events": seen["events"], "seconds": time.monotonic() - seen["began"]}
    Path(job["log"] + ".json").write_text(json.dumps(told))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def start(job: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        child(job)
    finally:  # a traceback, which is printed, is a failure of its own
        sys.excepthook(*sys.exc_info())
        os._exit(1)


def run(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    pids = [start(job) for job in jobs]
    ends: dict[int, dict[str, Any]] = {}
    while len(ends) < len(pids):
        pid, status = os.wait()
        ends[pid] = {"code": os.waitstatus_to_exitcode(status), "ended": time.monotonic()}
    told = [Path(job["log"] + ".json") for job in jobs]
    return [{**ends[pid], **(json.loads(path.read_text()) if path.exists() else {})} for pid, path in zip(pids, told)]


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)
