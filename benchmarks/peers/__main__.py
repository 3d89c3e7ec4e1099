"""How long does a step take beside PyTorch's Adam and the official implementations of the projection?

    python -m benchmarks.peers --python .venv-parity/bin/python --official adamSPD.py:AdamSPD spd.py:SPD

The official files (GT-RIPL/Selective-Projection-Decay, chengyuehuang511/MAPS-VLA) are fetched by you; `--python` is an
interpreter that has torch (`make test` makes one). Both sides run on the CPU with all its cores and take their steps
in turn; half the steps trigger.
"""

import dataclasses
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
import tyro  # noqa: E402

from benchmarks.optimizer_step import cases  # noqa: E402
from octo_integration.common.files import write_json  # noqa: E402

OURS = ("adam", "maps", "maps, estimated")
# glibc's heap kept between steps, on both sides: fixed when a process starts, so this one starts anew with it.
KEPT_HEAP = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(10**11)}


@dataclasses.dataclass(frozen=True)
class Config:
    """Times steps of JAX and of PyTorch in turn.

    python -m benchmarks.peers --python .venv-parity/bin/python
    """

    python: str
    """An interpreter with torch."""
    official: tuple[str, ...] = ()
    """FILE.py:CLASS of the official optimizers."""
    leaves: int = 200
    """Square matrices."""
    parameters: float = 94e6
    """Elements of all of them."""
    repeats: int = 11
    """Rounds."""
    out: Path = Path(__file__).parent / "results.json"
    """Where the numbers go."""


def main(config: Config) -> None:
    """Runs the rounds, prints the table and writes the numbers."""
    tree = cases.square(config.leaves, config.parameters)
    side = next(iter(tree.values())).shape[0]
    worker = Path(__file__).parent / "torch_worker.py"
    command = [config.python, str(worker), str(config.leaves), str(side), *config.official]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        theirs = process.stdout.readline().rstrip("\n").split("\t")
        if theirs == [""]:
            raise SystemExit("benchmarks.peers: the worker ended at once; see its error above.")
        grads = _normal(tree, 1, 0.01)
        back = jax.tree.map(lambda x: -x, grads)
        runs = {name: _start(name, tree, grads) for name in OURS}
        times: dict[str, list[float]] = {f"jax: {name}": [] for name in OURS} | {f"torch: {n}": [] for n in theirs}
        for i in range(config.repeats + 2):
            for name, run in runs.items():
                seconds = _step(run, back if i % 2 else grads)
                if i >= 2:
                    times[f"jax: {name}"].append(seconds)
            for name in theirs:
                process.stdin.write(name + "\n")
                process.stdin.flush()
                if i >= 2:
                    times[f"torch: {name}"].append(float(process.stdout.readline()))
                else:
                    process.stdout.readline()
        process.stdin.close()
    first = times["jax: adam"]
    rows = [
        {"step": name, "ms": 1e3 * statistics.median(t), "ratio": statistics.median(a / b for a, b in zip(t, first))}
        for name, t in times.items()
    ]
    about = {
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version(), "jax": jax.__version__},
        "parameters": cases.size(tree),
        "leaves": config.leaves,
    }
    write_json(config.out, {**about, "rows": rows})
    print("| step | ms | ÷ optax.adam |\n|---|---|---|")
    for row in rows:
        print(f"| {row['step']} | {row['ms']:.0f} | {row['ratio']:.2f} |")


def _normal(tree: Any, seed: int, scale: float) -> Any:
    keys = jax.random.split(jax.random.key(seed), len(tree))
    return {k: scale * jax.random.normal(key, x.shape) for key, (k, x) in zip(keys, tree.items())}


def _start(name: str, tree: Any, grads: Any) -> list[Any]:
    tx = cases.OPTIMIZERS[name]()
    params = _normal(tree, 0, 0.02)
    state = jax.jit(tx.init)(params)
    return [
        jax.jit(cases.step_of(tx), donate_argnums=(0, 1)).lower(params, state, grads).compile(),
        params,
        state,
    ]


def _step(run: list[Any], grads: Any) -> float:
    start = time.perf_counter()
    run[1:] = jax.block_until_ready(run[0](*run[1:], grads))
    return time.perf_counter() - start


if __name__ == "__main__":
    if not KEPT_HEAP.items() <= os.environ.items():
        command = [sys.executable, "-m", "benchmarks.peers", *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, **KEPT_HEAP})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="maps_optax estimates")
        main(tyro.cli(Config))
