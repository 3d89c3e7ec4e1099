"""Where does the time of a training step go? By JAX's profiler, for each part of the model and kind of instruction.

    python -m benchmarks.train_step.profile --model tiny

A kind is an instruction of the compiled program without its number: XLA names a fusion after what is in it.
"""

import collections
import dataclasses
import json
import os
import platform
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Literal

import jax
import tyro

import maps_optax as mx
from benchmarks.train_step.case import case
from octo_integration.common.files import write_json
from octo_integration.config import FinetuneConfig
from octo_integration.model.config import Remat
from octo_integration.state.methods import holding
from octo_integration.state.optimizer import make_optimizer
from octo_integration.state.train_state import abstract_state, init_state
from octo_integration.train.step import make_train_step

# Instructions that only run others, which have times of their own.
AROUND = ("while", "call", "conditional")
MODULES = ("dinov2", "siglip", "bridge", "language", "head")


@dataclasses.dataclass(frozen=True)
class Config:
    """Profiles a training step with MAPS.

    python -m benchmarks.train_step.profile --model tiny
    """

    model: str = "tiny"
    """Name of a model configuration."""
    batch: int = 8
    """Samples."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of activations."""
    remat: Remat = "none"
    """What the backward pass computes again."""
    steps: int = 20
    """Steps that are profiled, after three that are not."""
    out: Path = Path(__file__).parent / "profile.json"
    """Where the shares go; those of other models and devices stay."""


def main(config: Config) -> None:
    """Profiles, prints two tables and keeps them."""
    setting = case(config.model, config.batch, config.dtype, config.remat)
    run = FinetuneConfig("")
    tx = make_optimizer(run, holding(run, mx.presets.vla(), setting.shapes))
    like = abstract_state(setting.shapes, tx, setting.mesh, 2**16)
    step = make_train_step(setting.loss, tx, like, setting.mesh, seed=0).lower(like, setting.batch).compile()
    state = init_state(setting.params, tx, like)
    with tempfile.TemporaryDirectory() as folder:
        for i in range(config.steps + 3):
            if i == 3:
                jax.profiler.start_trace(folder)
            state, metrics = step(state, setting.batch)
            jax.block_until_ready(metrics)
        jax.profiler.stop_trace()
        (trace,) = Path(folder).rglob("*.xplane.pb")
        times = instruction_times(trace)
    parts, kinds = summed(times, step.as_text())
    print(f"{sum(parts.values()) / config.steps / 1e6:.1f} ms of instructions a step, all cores together")
    shares = {"parts": _shares(parts), "kinds": _shares(kinds)}
    for name, table in shares.items():
        print(f"\n{name}")
        for label, share in table.items():
            print(f"{share:6.1%}  {label}")
    about = {"model": config.model, "batch": config.batch, "dtype": config.dtype, "remat": config.remat}
    about["device"] = jax.devices()[0].device_kind
    found = json.loads(config.out.read_text())["rows"] if config.out.exists() else []
    found = [row for row in found if not about.items() <= row.items()]
    about["commit"] = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], text=True).strip()
    about["machine"] = {"processor": platform.machine(), "cores": os.cpu_count()}
    found.append({**about, "jax": jax.__version__, **shares})
    write_json(config.out, {"rows": found})


def instruction_times(trace: Path) -> dict[str, float]:
    """Nanoseconds of each instruction of the compiled program, over all threads and steps."""
    times: collections.Counter[str] = collections.Counter()
    for plane in jax.profiler.ProfileData.from_file(str(trace)).planes:
        for line in plane.lines:
            for event in line.events:
                name = dict(event.stats).get("hlo_op")
                if name is not None:
                    times[name] += event.duration_ns
    return times


def summed(times: dict[str, float], program: str) -> tuple[dict[str, float], dict[str, float]]:
    """The times by (pass, module) and by kind of instruction."""
    told = {}
    for line in program.splitlines():
        if found := re.match(r"\s*(?:ROOT )?%?([\w.-]+) = .*?([a-z-]+)\(", line):
            where = re.search(r'op_name="([^"]*)"', line)
            told[found[1]] = (found[2], where[1] if where else "")
    parts: collections.Counter[str] = collections.Counter()
    kinds: collections.Counter[str] = collections.Counter()
    for name, time in times.items():
        opcode, where = told.get(name, ("", ""))
        if opcode in AROUND or re.sub(r"[.\d]+$", "", name) in AROUND:
            continue
        parts[_part(where)] += time
        kinds[re.sub(r"[.\d]+$", "", name)] += time
    return parts, kinds


def _part(where: str) -> str:
    if not where:
        return "named after nothing (copies and zeros that the compiler adds)"
    module = next((name for name in MODULES if f"/{name}" in where), "rest of the model")
    if "transpose(jvp" in where:
        return f"{module}, backward"
    if "jvp" in where:
        return f"{module}, forward"
    return "optimizer and metrics"


def _shares(times: dict[str, float]) -> dict[str, Any]:
    """The twelve largest, as shares of all."""
    whole = sum(times.values())
    return {name: round(t / whole, 4) for name, t in sorted(times.items(), key=lambda item: -item[1])[:12]}


if __name__ == "__main__":
    main(tyro.cli(Config))
