"""What does MAPS cost on a GPU? All of it in eight minutes, for whoever has one for that long.

    python -m benchmarks.on_gpu                    # on a machine with a GPU; --python, an interpreter with torch
    python -m benchmarks.on_gpu --rehearse --out /tmp/rehearsal.json

Every part runs in a process of its own, ends when its time is over, and is written down when it is done: one that fails
takes nothing from the others.
"""

import dataclasses
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import tyro

from benchmarks.on_gpu.parts import NO_GPU
from octo_integration.common.files import write_json

# Part -> the seconds that it may take; the most wanted first. Eight minutes in all.
SECONDS = {
    "attention": 45,
    "optimizer, float32": 100,
    "train step": 200,
    "optimizer, bfloat16": 50,
    "optimizer, anchor on host": 45,
    "torch": 40,
}
PATIENCE = 10  # times as long may a rehearsal take, on a machine that has other things to do
TORCH = "torch"
WORKER = Path(__file__).parents[1] / "peers" / "torch_worker.py"


@dataclasses.dataclass(frozen=True)
class Config:
    """Measures all parts on one GPU.

    python -m benchmarks.on_gpu
    """

    python: str | None = None
    """An interpreter with torch; default: this one, where it has it, or PyTorch is left out."""
    rehearse: bool = False
    """Takes the same way on the CPU, with sizes that say nothing."""
    out: Path = Path(__file__).parent / "results.json"
    """Where the numbers go."""


def main(config: Config) -> dict[str, Any]:
    """Runs the parts, each with what is left of its time, prints and keeps what they found.

    Raises:
      SystemExit: there is no GPU.
    """
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    found: dict[str, Any] = {"commit": commit, "rehearsal": config.rehearse, "parts": {}}
    for name, allowed in SECONDS.items():
        seconds = allowed * (PATIENCE if config.rehearse else 1)
        start = time.monotonic()
        part = torch(config, seconds) if name == TORCH else measured(name, config.rehearse, seconds)
        found["parts"][name] = {"seconds": round(time.monotonic() - start, 1), **part}
        write_json(config.out, found)
        print(name, json.dumps(found["parts"][name]), flush=True)
    print(table(found["parts"]))
    return found


def measured(name: str, rehearse: bool, seconds: float) -> dict[str, Any]:
    """What a part printed, or {"error": why not}."""
    command = [sys.executable, "-m", "benchmarks.on_gpu.parts", name, *(["--rehearse"] if rehearse else [])]
    environment = {**os.environ, "XLA_PYTHON_CLIENT_MEM_FRACTION": ".9"}
    if rehearse:
        environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"error": f"took more than {seconds} s"}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
        if last.startswith(NO_GPU):
            raise SystemExit(last)
        return {"error": last[:500]}
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def torch(config: Config, seconds: float) -> dict[str, Any]:
    """PyTorch's Adam on the same tree, by benchmarks.peers' worker, or {"left out": why}."""
    python = config.python or (sys.executable if importlib.util.find_spec("torch") else None)
    if python is None:
        return {"left out": "torch is not importable here; give --python an interpreter that has it"}
    leaves, side, repeats = (4, 64, 2) if config.rehearse else (200, 686, 30)
    environment = {**os.environ, "PEER_DEVICE": "cpu" if config.rehearse else "cuda"}
    asked = "Adam\n" * (repeats + 2)
    command = [python, str(WORKER), str(leaves), str(side)]
    try:
        done = subprocess.run(
            command, input=asked, env=environment, capture_output=True, text=True, timeout=seconds, check=True
        )
    except subprocess.TimeoutExpired:
        return {"error": f"took more than {seconds} s"}
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        return {"error": said.strip().splitlines()[-1][:500]}
    times = [float(line) for line in done.stdout.splitlines()[3:]]  # the names, and two steps that touch memory first
    return {
        "rows": [
            {"optimizer": "torch.optim.Adam", "parameters": leaves * side**2, "ms": 1e3 * statistics.median(times)}
        ]
    }


def table(parts: dict[str, Any]) -> str:
    """Milliseconds of every step, over the first of its part."""
    lines = ["| part | step | ms | ÷ first | GB/s (a copy's) | MFU |", "|---|---|---|---|---|---|"]
    for name, part in parts.items():
        for row in part.get("rows", ()):
            if "ms" not in row:
                continue
            ratio = f"{row['ratio']:.2f}" if "ratio" in row else "–"
            rate = f"{row['gb_per_s']:.0f} ({part['copy_gb_per_s']:.0f})" if "gb_per_s" in row else "–"
            mfu = f"{row['mfu']:.0%}" if "mfu" in row else "–"
            step = row.get("optimizer") or row["part"]
            lines.append(f"| {name} | {step} | {row['ms']:.2f} | {ratio} | {rate} | {mfu} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main(tyro.cli(Config))
