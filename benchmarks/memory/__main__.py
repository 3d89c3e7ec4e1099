"""Where do the bytes of fine-tuning go?

    python -m benchmarks.memory                      # tiny live, on 1 and 8 devices; mini and openvla not allocated
    python -m benchmarks.memory --run tiny mini      # where there is memory for it, as on a GPU

Counts the same bytes twice: in what the compiler says of the step of `maps-vla finetune`, and in the buffers that are
live between two of its steps. On a machine with a GPU one device is that GPU; eight are always host devices.
"""

import dataclasses
import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import tyro
from tqdm import tqdm

from benchmarks.memory.worker import CASES
from octo_integration.common.files import write_json

COMPONENTS = ("parameters", "frozen", "moments", "anchor", "statistics", "batch", "other")


@dataclasses.dataclass(frozen=True)
class Config:
    """Counts the bytes of a training step by what they are for.

    python -m benchmarks.memory --models tiny --devices 8
    """

    models: tuple[str, ...] = ("tiny", "mini", "openvla")
    """Names of model configurations."""
    run: tuple[str, ...] = ("tiny",)
    """Those that are allocated and take steps; of the others, only shapes and compiled programs are read."""
    devices: tuple[int, ...] = (1, 8)
    """Numbers of devices that share a model of `run`; more than one are host devices. The others have one."""
    batch: int = 16
    """Samples, over all devices."""
    out: Path = Path(__file__).parent / "results.json"
    """Where the rows go; those of other models, numbers and kinds of devices stay."""


def main(config: Config) -> None:
    """Measures case by case, keeps the rows and prints the table."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    names = ("jax", "jaxlib", "optax", "flax")
    about = {
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version(), **{n: metadata.version(n) for n in names}},
        "commit": commit,
    }
    rows = json.loads(config.out.read_text())["rows"] if config.out.exists() else []
    jobs = [(m, n, c) for m in config.models for n in config.devices if n == 1 or m in config.run for c in CASES]
    for model, devices, case in tqdm(jobs, unit="case"):
        row = {**about, **measure(model, case, devices, config.batch, model in config.run)}
        rows = [old for old in rows if _key(old) != _key(row)] + [row]
        write_json(config.out, {"rows": rows})
    print(table(rows))


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("model", "devices", "device", "case"))


def measure(model: str, case: str, devices: int, batch: int, run: bool) -> dict[str, Any]:
    """The row of a case, from a process of its own."""
    job = {"model": model, "case": case, "devices": devices, "batch": batch, "run": run}
    environment = dict(os.environ)
    if devices > 1:
        environment |= {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "benchmarks.memory.worker", json.dumps(job)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def table(rows: list[dict[str, Any]]) -> str:
    """Bytes on a device per parameter of the model; the two columns of differences are in bytes."""
    head = ["model, devices", "case", "parameters", "frozen", "moments", "θ0", "statistics", "batch", "other", "sum"]
    head += ["live", "live − sum, bytes", "arguments", "live − arguments, bytes", "donated"]
    head += ["temporaries of the step", "of the optimizer alone", "peak"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        shapes, step, live = row["shapes"], row["step"], row.get("live")

        def per(size: int | None, own: dict[str, Any] = row) -> str:
            return "–" if size is None else f"{size / own['parameters']:.3f}"

        whole = sum(shapes.values())
        counted = None if live is None else sum(live.values())
        lines.append(
            [f"`{row['model']}`, {row['devices']} {row['device']}", row["case"], *(per(shapes[c]) for c in COMPONENTS)]
            + [per(whole), per(counted), "–" if counted is None else str(counted - whole), per(step["arguments"])]
            + ["–" if counted is None else str(counted - step["arguments"]), per(step["donated"])]
            + [per(step["temporaries"]), per(row["optimizer"]["temporaries"]), per(row.get("peak"))]
        )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    main(tyro.cli(Config))
