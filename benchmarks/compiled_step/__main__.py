"""What do the compilers of TPUs and GPUs make of a step of the optimizer, with MAPS and without?

    python -m benchmarks.compiled_step                     # TPU pods: pip install -e '.[vla,tpu]'
    python -m benchmarks.compiled_step --targets h100      # a GPU: pip install 'jax[cuda12]'
    python -m benchmarks.compiled_step.pods                # what follows from the rows for pods

Compiles for devices that are not here: `libtpu` and the CUDA plugin describe them, shapes stand for arrays, nothing
runs. What they say repeats to the byte: bytes moved, temporaries, collectives, kernels. Rows that `results.json` has
from this version of the sources are not compiled again.
"""

import dataclasses
import hashlib
import json
import platform
import time
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.aot import topologies  # isort: skip  (before jax)

import jax
import numpy as np
import optax
import tyro
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks import hlo
from benchmarks.optimizer_step import cases
from octo_integration.common.files import write_json

HERE = Path(__file__).parent
# What decides the compiled step.
COMPILED = (
    *(f"maps_optax/_{name}.py" for name in ("anchor", "decide", "devices", "gradient")),
    *(f"maps_optax/_{name}.py" for name in ("maps", "spd", "strength", "sums")),
    "benchmarks/optimizer_step/cases.py",
)
# Leaves with fewer elements stay whole on every chip.
LARGE = 2**16


class Target(NamedTuple):
    """Devices that are not here."""

    platform: str
    topology: str
    options: dict[str, str] = {}


H100 = {"target_config": (HERE / "h100.txtpb").read_text()}
TARGETS = {
    "v5e-1": Target("tpu", "v5e:2x2"),
    "v5e-16": Target("tpu", "v5e:4x4"),
    "v5e-256": Target("tpu", "v5e:16x16"),
    "v5p-128": Target("tpu", "v5p:4x4x4"),
    "h100": Target("cuda", "", {**H100, "topology": "1x1x1"}),
    "h100 x 8": Target("cuda", "", {**H100, "topology": "1x1x8"}),
}
TREES = {
    "qwen": cases.qwen,
    "qwen, stacked": lambda: cases.qwen(stacked=True),
    "8 of 4096 x 2048": lambda: {f"leaf_{i}": jax.ShapeDtypeStruct((4096, 2048), np.float32) for i in range(8)},
}


# What is worth its minutes: leaves that are split, leaves that stack layers, and large leaves on one chip.
ROWS = [
    ("v5e-16", "qwen"),
    ("v5e-256", "qwen"),
    ("v5p-128", "qwen"),
    ("v5e-16", "qwen, stacked"),
    ("v5e-1", "8 of 4096 x 2048"),
    ("h100", "qwen"),
    ("h100 x 8", "qwen"),
    ("h100", "qwen, stacked"),
    ("h100", "8 of 4096 x 2048"),
]


@dataclasses.dataclass(frozen=True)
class Config:
    """Compiles a step of the optimizer for devices that are not here.

    python -m benchmarks.compiled_step --targets v5e-16 --trees qwen
    """

    targets: tuple[str, ...] = ("v5e-1", "v5e-16", "v5e-256", "v5p-128")
    """Of v5e-1, v5e-16, v5e-256, v5p-128, h100, h100 x 8."""
    trees: tuple[str, ...] = tuple(TREES)
    """Of qwen; qwen, stacked; 8 of 4096 x 2048."""
    optimizers: tuple[str, ...] = ("adam", "maps", "maps, estimated", "maps, bf16 anchor")
    """Of those in optimizer_step/cases.py."""
    out: Path = HERE / "results.json"
    """Where the rows go."""


def main(config: Config) -> None:
    """Compiles what is not there yet, row by row, and prints the table."""
    digest = hashlib.sha256()
    for pattern in COMPILED:
        for file in sorted(HERE.parents[1].glob(pattern)):
            digest.update(file.read_bytes())
    version = {"version": digest.hexdigest()[:12]}
    known = json.loads(config.out.read_text()) if config.out.exists() else {"versions": {}, "rows": []}
    rows = known["rows"]
    for target, tree in ROWS:
        if target not in config.targets or tree not in config.trees:
            continue
        for optimizer in config.optimizers:
            key = {"target": target, "tree": tree, "optimizer": optimizer}
            if any((key | version).items() <= row.items() for row in rows):
                continue
            print(f"compiling {optimizer} of {tree} for {target} ...", flush=True)
            rows = [row for row in rows if not key.items() <= row.items()]
            rows.append({**key, **version, **measure(target, TREES[tree](), cases.OPTIMIZERS[optimizer]())})
            order = list(cases.OPTIMIZERS)
            rows.sort(key=lambda row: (ROWS.index((row["target"], row["tree"])), order.index(row["optimizer"])))
            about = {"python": platform.python_version(), "jax": jax.__version__, "optax": optax.__version__}
            about |= {name: metadata.version(name) for name in ("libtpu", "jax-cuda12-plugin") if _installed(name)}
            write_json(config.out, {"versions": known["versions"] | about, "rows": rows})
    print(table(rows))


def _installed(package: str) -> bool:
    return any(x.name == package for x in metadata.distributions())


def measure(target: str, tree: Any, tx: optax.GradientTransformation) -> dict[str, Any]:
    """One row; words are of four bytes, per parameter that a chip holds."""
    where = TARGETS[target]
    devices = topologies.get_topology_desc(where.topology, where.platform, **where.options).devices
    chips = np.array(devices)[: 1 if target.endswith("-1") else None]
    mesh = Mesh(chips, ("fsdp",))

    def place(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, split(x.shape, len(chips))))

    params, state = (jax.tree.map(place, t) for t in (tree, jax.eval_shape(tx.init, tree)))
    shardings = jax.tree.map(lambda x: x.sharding, (params, state))
    start = time.perf_counter()
    step = jax.jit(cases.step_of(tx), donate_argnums=(0, 1), out_shardings=shardings)
    # Autotuning would need the GPU.
    options = {"xla_gpu_autotune_level": "0"} if where.platform == "cuda" else {}
    compiled = step.lower(params, state, params).compile(compiler_options=options)
    seconds = time.perf_counter() - start
    text, cost = compiled.as_text(), compiled.cost_analysis()
    held = sum(int(np.prod(x.sharding.shard_shape(x.shape))) for x in jax.tree.leaves(params))
    moved = hlo.traffic(text)
    return {
        "chips": len(chips),
        "parameters per chip": held,
        "main": moved.main / 4 / held,
        "on chip": moved.on_chip / 4 / held,
        # The compiler counts what it keeps on the chip among the temporaries.
        "temporaries in main": moved.temporaries / 4 / held if moved.on_chip else None,
        "accessed": cost["bytes accessed"] / 4 / held if cost else None,
        "temporaries": compiled.memory_analysis().temp_size_in_bytes / 4 / held,
        "cycles": hlo.cycles(text),
        "kernels": hlo.kernels(text),
        "collectives": hlo.collectives(text),
        "seconds": round(seconds, 1),
    }


def split(shape: tuple[int, ...], chips: int) -> PartitionSpec:
    """The longest axis over all chips, if the leaf is large and the axis divides."""
    axis = max(range(len(shape)), key=lambda i: shape[i], default=0)
    if chips == 1 or np.prod(shape) < LARGE or shape[axis] % chips:
        return PartitionSpec()
    return PartitionSpec(*("fsdp" if i == axis else None for i in range(len(shape))))


def table(rows: list[dict[str, Any]]) -> str:
    """Words per parameter and cycles, with their ratio to Adam's of the same tree and target."""
    head = ["target", "tree", "optimizer", "main memory, words", "÷ Adam", "temporaries there, words", "cycles ÷ Adam"]
    head += ["bytes accessed ÷ Adam", "kernels", "collectives"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        same = [r for r in rows if (r["target"], r["tree"]) == (row["target"], row["tree"])]
        adam = next(r for r in same if r["optimizer"] == "adam")
        ratio = f"{row['main'] / adam['main']:.2f}"
        cells = [row["target"], row["tree"], row["optimizer"], f"{row['main']:.2f}", ratio]
        inside = row["temporaries in main"]
        cells.append(f"{row['temporaries'] if inside is None else inside:.2f}")
        cells.append(f"{row['cycles'] / adam['cycles']:.2f}" if adam["cycles"] else "–")
        cells.append(f"{row['accessed'] / adam['accessed']:.2f}" if adam["accessed"] else "–")
        cells += [str(row["kernels"]), ", ".join(f"{n} {kind}" for kind, n in row["collectives"].items()) or "none"]
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="maps_optax estimates")
        main(tyro.cli(Config))
