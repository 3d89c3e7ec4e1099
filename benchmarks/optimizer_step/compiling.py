"""How long does a step of the optimizer take to trace, lower and compile, as leaves grow?

    python -m benchmarks.optimizer_step.compiling

CPU time of this process and its threads, on square leaves of one shape; nothing is run, no compiled program is reused,
and every optimizer is compiled in turn, so that they share whatever else the machine does.
"""

import dataclasses
import json
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import jax
import tyro

from benchmarks import hlo
from benchmarks.optimizer_step import cases
from octo_integration.common.files import write_json

HERE = Path(__file__).parent
PHASES = ("traced", "lowered", "compiled")


@dataclasses.dataclass(frozen=True)
class Config:
    """Times the compilation of a step.

    python -m benchmarks.optimizer_step.compiling --leaves 100
    """

    leaves: tuple[int, ...] = (100, 300, 500, 1000)
    """Numbers of leaves."""
    side: int = 128
    """Rows and columns of each."""
    optimizers: tuple[str, ...] = ("adam", "maps", "maps, estimated")
    """Of those in cases.py; the first is what the others are divided by."""
    repeats: int = 3
    """Rounds; of the times the medians count."""
    out: Path = HERE / "compiling.json"
    """Where the rows go; those of other numbers of leaves are kept."""


def main(config: Config) -> None:
    """Measures, keeps the rows, and prints the table."""
    jax.config.update("jax_enable_compilation_cache", False)
    rows = json.loads(config.out.read_text()) if config.out.exists() else []
    for leaves in config.leaves:
        rows = [row for row in rows if row["leaves"] != leaves] + measure(config, leaves)
        write_json(config.out, sorted(rows, key=lambda row: row["leaves"]))
    print(table(rows))


def measure(config: Config, leaves: int) -> list[dict[str, Any]]:
    """A row for each optimizer: CPU seconds by phase, divided by those of the first."""
    found: dict[str, list[list[float]]] = {name: [] for name in config.optimizers}
    kernels = {}
    for _ in range(config.repeats):
        for name in config.optimizers:
            seconds, kernels[name] = compile_once(name, cases.square(leaves, leaves * config.side**2))
            found[name].append(seconds)
    medians = {name: [statistics.median(phase) for phase in zip(*rounds)] for name, rounds in found.items()}
    first = medians[config.optimizers[0]]
    rows: list[dict[str, Any]] = []
    for name, seconds in medians.items():
        ratios = {phase: round(own / base, 2) for phase, own, base in zip(PHASES, seconds, first)}
        whole = round(sum(seconds) / sum(first), 2)
        rows.append({"leaves": leaves, "optimizer": name, **ratios, "in all": whole, "kernels": kernels[name]})
    return rows


def compile_once(name: str, tree: Any) -> tuple[list[float], int]:
    """CPU seconds of each phase, and the kernels of the program."""
    jax.clear_caches()
    tx = cases.OPTIMIZERS[name]()
    state = jax.eval_shape(tx.init, tree)
    jax.clear_caches()
    times = [time.process_time()]
    traced = jax.jit(cases.step_of(tx), donate_argnums=(0, 1)).trace(tree, state, tree)
    times.append(time.process_time())
    lowered = traced.lower()
    times.append(time.process_time())
    compiled = lowered.compile()
    times.append(time.process_time())
    return [b - a for a, b in zip(times, times[1:])], hlo.kernels(compiled.as_text())


def table(rows: list[dict[str, Any]]) -> str:
    """What `README.md` shows."""
    head = ["leaves", "optimizer", *(f"{phase} ÷ Adam" for phase in (*PHASES, "in all")), "kernels"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        ratios = [f"{row[phase]:.2f}" for phase in (*PHASES, "in all")]
        lines.append([str(row["leaves"]), row["optimizer"], *ratios, str(row["kernels"])])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="maps_optax estimates")
        main(tyro.cli(Config))
