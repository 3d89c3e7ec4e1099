"""What does MAPS add to a step of the optimizer, as trees grow?

    python -m benchmarks.optimizer_step                # all groups; --groups main for the table alone

Every group of optimizers takes its steps in turn, so that they share whatever else the machine does; ratios are medians
over the rounds. On a machine with a GPU it measures that.
"""

import dataclasses
import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import matplotlib.ticker
import tyro
from tqdm import tqdm

from octo_integration.common.files import write_json

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

HERE = Path(__file__).parent
ALL = ("adam", "maps", "maps, estimated", "maps, bf16 anchor", "maps, host anchor", "uniform", "l2_sp")
FEW = ("adam", "maps", "maps, estimated")


class Group(NamedTuple):
    """One tree and who steps on it."""

    names: tuple[str, ...]
    leaves: int
    parameters: float
    dtype: str = "float32"
    devices: int = 1
    kept_heap: bool = True
    rows: int = 0


GROUPS: dict[str, list[Group]] = {
    "main": [
        Group(ALL, 200, 94e6),
        Group(ALL, 200, 94e6, kept_heap=False),
        Group(ALL, 200, 94e6, dtype="bfloat16"),
    ],
    "size": [Group(FEW, 20, n) for n in (1e3, 1e4, 1e5, 1e6, 1e7, 1e8)],
    "leaves": [Group(FEW, n, 1e7) for n in (1, 10, 100, 500)],
    "rows": [
        Group(("adam", "uniform", "per row", "per row, mars"), 1, 64 * n, rows=n)
        for n in (10, 100, 1_000, 10_000, 100_000)
    ],
    "devices": [Group(FEW, 64, 64 * 512**2, devices=n) for n in (1, 2, 4, 8)],
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Times a step of the optimizer alone, without a model.

    python -m benchmarks.optimizer_step --groups main
    """

    groups: tuple[str, ...] = tuple(GROUPS)
    """Of main, size, leaves, rows (each with a λ of its own), and devices (host devices, which share the cores: their
    times say nothing of a pod)."""
    repeats: int = 15
    """Rounds."""
    out: Path = HERE
    """Where results.json and cost.png go."""


def main(config: Config) -> None:
    """Runs the groups, keeps the rows of the others, prints the table and draws the figure."""
    file = config.out / "results.json"
    rows = json.loads(file.read_text())["rows"] if file.exists() else []
    rows = [row for row in rows if row["group"] not in config.groups]
    jobs = [(name, group) for name in config.groups for group in GROUPS[name]]
    for name, group in tqdm(jobs, unit="group"):
        rows += [{"group": name, **row} for row in run(group, config.repeats)]
    names = ("jax", "jaxlib", "optax")
    about = {
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version(), **{n: metadata.version(n) for n in names}},
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        ).stdout.strip(),
    }
    write_json(file, {**about, "rows": rows})
    print(table(rows), rows_table(rows), sep="\n\n")
    draw(rows, config.out / "cost.png")


def run(group: Group, repeats: int) -> list[dict[str, Any]]:
    """The rows of a group, from a process of its own."""
    job = {"names": group.names, "leaves": group.leaves, "parameters": group.parameters, "dtype": group.dtype}
    job |= {"devices": group.devices, "rows": group.rows, "repeats": repeats}
    job |= {"kept_heap": group.kept_heap}
    environment = dict(os.environ)
    if group.devices > 1:
        environment |= {"XLA_FLAGS": f"--xla_force_host_platform_device_count={group.devices}", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "benchmarks.optimizer_step.worker", json.dumps(job)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    asked = {"leaves": group.leaves, "dtype": group.dtype, "devices": group.devices, "kept_heap": group.kept_heap}
    return [{**json.loads(line), **asked} for line in done.stdout.splitlines()]


def table(rows: list[dict[str, Any]]) -> str:
    """The group "main": time of each optimizer over Adam's, temporaries and state in bytes per parameter."""
    head = ["optimizer", "float32", "float32, heap not kept", "bfloat16", "temporaries", "state", "compilation, s"]
    lines = [head, ["---"] * len(head)]
    main_rows = [row for row in rows if row["group"] == "main"]
    for name in dict.fromkeys(row["optimizer"] for row in main_rows):
        own = [row for row in main_rows if row["optimizer"] == name]
        kept, fresh, half = (
            next(row for row in own if (row["dtype"], row["kept_heap"]) == key)
            for key in (("float32", True), ("float32", False), ("bfloat16", True))
        )
        ratios = [f"{row['ratio']:.2f}" for row in (kept, fresh, half)]
        lines.append(
            [name, *ratios, f"{kept['temporaries']:.2f}", f"{kept['state']:.2f}", f"{kept['compile_seconds']:.1f}"]
        )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def rows_table(rows: list[dict[str, Any]]) -> str:
    """The group "rows": time of each optimizer over Adam's, by the number of rows that have a λ of their own."""
    own = {(row["optimizer"], row["parameters"] // 64): row for row in rows if row["group"] == "rows"}
    sizes = list(dict.fromkeys(n for _, n in own))
    lines = [["optimizer", *(f"{n:,} rows" for n in sizes)], ["---"] * (1 + len(sizes))]
    for name in dict.fromkeys(name for name, _ in own):
        lines.append([name, *(f"{own[name, n]['ratio']:.2f}" for n in sizes)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    """Step time against parameters, leaves and devices, log-log."""
    axes_of = {"size": "parameters", "leaves": "leaves", "devices": "devices"}
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for axis, (group, field) in zip(axes, axes_of.items()):
        own = [row for row in rows if row["group"] == group]
        for name in dict.fromkeys(row["optimizer"] for row in own):
            points = [(row[field], row["ms"]) for row in own if row["optimizer"] == name]
            axis.loglog(*zip(*points), marker="o", label=name)
        if field == "devices":
            axis.set_xticks([1, 2, 4, 8], labels=["1", "2", "4", "8"])
        axis.minorticks_off()
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
        axis.set_xlabel("host devices (of the same cores)" if field == "devices" else field)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("ms per step")
    axes[0].legend()
    figure.savefig(file, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main(tyro.cli(Config))
