"""Which share of a training step is MAPS, and which are the others'?

    python -m benchmarks.train_step                                          # tiny, wherever this runs
    python -m benchmarks.train_step --model mini --batch 64 --peak-tflops 989 --dtype bfloat16    # a GPU

The parts are compiled apart and run in turn on random weights and samples: the loss, its gradient, and the whole step
of `maps-vla finetune` with AdamW alone, with L2-SP and with MAPS.
"""

import dataclasses
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import tyro

import maps_optax as mx
from benchmarks.train_step.case import case, step_flops
from octo_integration.common.files import write_json
from octo_integration.config import FinetuneConfig, MapsConfig
from octo_integration.model.config import Remat
from octo_integration.state import sharding
from octo_integration.state.methods import holding
from octo_integration.state.optimizer import make_optimizer
from octo_integration.state.train_state import abstract_state, init_state
from octo_integration.train.step import make_train_step

HOLDS = {
    "AdamW": MapsConfig(method="adam"),
    "L2-SP": MapsConfig(method="l2_sp", lambda_max=0.01),
    "MAPS": MapsConfig(),
    "MAPS, θ0 in bf16": MapsConfig(anchor_dtype="bfloat16"),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Times the parts of a training step.

    python -m benchmarks.train_step --model tiny --batch 8
    """

    model: str = "tiny"
    """Name of a model configuration."""
    batch: int = 8
    """Samples."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of activations."""
    remat: Remat = "none"
    """What the backward pass computes again."""
    repeats: int = 15
    """Rounds, in each of which every part runs once."""
    holds: tuple[str, ...] = tuple(HOLDS)
    """Whole steps that are timed: AdamW, which the others are divided by, L2-SP, MAPS, "MAPS, θ0 in bf16"."""
    peak_tflops: float | None = None
    """Of the device at that dtype; with it, the share of it that the model's products use (MFU) is reported."""
    out: Path = Path(__file__).parent / "results.json"
    """Where the rows go; those of other models and batches stay."""


def main(config: Config) -> None:
    """Times the parts, prints them, and keeps the rows."""
    rows = measure(config)
    about = {
        "model": config.model,
        "batch": config.batch,
        "dtype": config.dtype,
        "remat": config.remat,
        "device": jax.devices()[0].device_kind,
    }
    print(table(rows, config.batch))
    found = json.loads(config.out.read_text())["rows"] if config.out.exists() else []
    found = [row for row in found if not about.items() <= row.items()]
    commit = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], text=True).strip()
    machine = {"processor": platform.machine(), "cores": os.cpu_count()}
    versions = {"python": platform.python_version(), "jax": jax.__version__}
    found += [{**about, "commit": commit, "machine": machine, "versions": versions, **row} for row in rows]
    write_json(config.out, {"rows": found})


def measure(config: Config) -> list[dict[str, Any]]:
    """A row per part: median milliseconds, and the median over rounds of its time over that of AdamW's step."""
    mesh, loss, batch, shapes, params = case(config.model, config.batch, config.dtype, config.remat)
    key = jax.random.key(0)
    forward = jax.jit(lambda params: loss(params, batch, key)[0])
    backward = jax.jit(lambda params: jax.grad(lambda p: loss(p, batch, key)[0])(params))
    placed = jax.device_put(params, sharding.replicated(mesh))
    parts: dict[str, Callable[[], Any]] = {"loss": lambda: forward(placed), "gradient": lambda: backward(placed)}
    for name in config.holds:
        run = FinetuneConfig("", maps=HOLDS[name])
        tx = make_optimizer(run, holding(run, mx.presets.vla(), shapes))
        like = abstract_state(shapes, tx, mesh, 2**16)
        step = make_train_step(loss, tx, like, mesh, seed=0).lower(like, batch).compile()
        parts[name] = _stepper(step, init_state(params, tx, like), batch)
    times: dict[str, list[float]] = {name: [] for name in parts}
    for i in range(config.repeats + 2):
        for name, part in parts.items():
            start = time.perf_counter()
            jax.block_until_ready(part())
            if i >= 2:
                times[name].append(time.perf_counter() - start)
    rows, work = [], config.batch * step_flops(config.model, mesh)
    for name, seconds in times.items():
        row = {"part": name, "ms": 1e3 * statistics.median(seconds)}
        row["ratio"] = statistics.median(a / b for a, b in zip(seconds, times["AdamW"]))
        if name in HOLDS:
            row["samples_per_s"] = config.batch / statistics.median(seconds)
            if config.peak_tflops:
                row["mfu"] = work / statistics.median(seconds) / config.peak_tflops / 1e12
        rows.append(row)
    return rows


def _stepper(step: Any, state: Any, batch: Any) -> Callable[[], Any]:
    """Steps on from its own last state, which is donated."""
    kept = [state]

    def run() -> Any:
        kept[0], metrics = step(kept[0], batch)
        return metrics

    return run


def table(rows: list[dict[str, Any]], batch: int) -> str:
    """Milliseconds, samples a second, and the time over that of AdamW's step."""
    lines = ["| part | ms | samples/s | ÷ AdamW's step | MFU |", "|---|---|---|---|---|"]
    for row in rows:
        mfu = f"{row['mfu']:.0%}" if "mfu" in row else "–"
        rate = f"{batch / row['ms'] * 1e3:.0f}"
        lines.append(f"| {row['part']} | {row['ms']:.1f} | {rate} | {row['ratio']:.3f} | {mfu} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main(tyro.cli(Config))
