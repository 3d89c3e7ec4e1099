"""What does one training step of the full-size models cost on a TPU pod, with MAPS and without?

    python -m benchmarks.tpu_aot

Compiles the real step of `maps-vla finetune` with the real TPU compiler, for pods that are not here: `libtpu` describes
their topology, shapes stand for arrays, nothing runs. Memory, bytes accessed, FLOPs and collectives are the compiler's
own and repeat to the byte. Rows that `results.json` has from this version of the sources are not compiled again.
Needs `pip install -e '.[vla,tpu]'`.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import platform
import time
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.aot import topologies  # isort: skip  (before jax)

import jax
import numpy as np
import tyro

import maps_optax as mx
from benchmarks.batch import abstract_batch
from benchmarks.hlo import collectives
from octo_integration.common.files import write_json
from octo_integration.config import FinetuneConfig, MapsConfig, MeshConfig
from octo_integration.model.named import model_shapes
from octo_integration.model.sizes import CONFIGS
from octo_integration.model.vla import VLA
from octo_integration.state import sharding
from octo_integration.state.methods import holding
from octo_integration.state.optimizer import make_optimizer
from octo_integration.state.train_state import TrainState, abstract_state
from octo_integration.train.step import make_loss, make_train_step

HERE = Path(__file__).parent
SOURCES = HERE.parents[1]
GIB = 2**30


class Pod(NamedTuple):
    """A TPU pod slice: libtpu's name of its topology, and the memory of a chip in bytes."""

    topology: str
    memory: int


PODS = {
    "v5e-16": Pod("v5e:4x4", 16 * GIB),
    "v5e-256": Pod("v5e:16x16", 16 * GIB),
    "v5p-128": Pod("v5p:4x4x4", 95 * GIB),  # named after its 128 cores, two on a chip
}
HOLDS = {
    "adam": MapsConfig(method="adam"),
    "maps": MapsConfig(),
    "maps, bf16 anchor": MapsConfig(anchor_dtype="bfloat16"),
    "maps, host anchor": MapsConfig(anchor_memory="pinned_host"),
}
# What decides the compiled step.
COMPILED = (
    "maps_optax/**/*.py",
    "octo_integration/model/**/*.py",
    *(f"octo_integration/state/{name}.py" for name in ("lora", "optimizer", "sharding", "train_state")),
    *(f"octo_integration/train/{name}.py" for name in ("finite", "step")),
)
# Parameters with fewer elements may stay whole on every chip.
LARGE = 2**16


@dataclasses.dataclass(frozen=True)
class Config:
    """Compiles one training step for pods that are not here.

    python -m benchmarks.tpu_aot --models openvla --pods v5e-256
    """

    models: tuple[str, ...] = ("openvla", "mini")
    """Names of model configurations."""
    pods: tuple[str, ...] = ("v5e-256", "v5p-128", "v5e-16")
    """Pod slices."""
    holds: tuple[str, ...] = tuple(HOLDS)
    """What holds the weights, and where its anchor lives."""
    fsdp: int = 64
    """Chips that share one copy of the parameters (all of a smaller pod)."""
    batch: int = 256
    """Global batch in samples."""
    out: Path = HERE / "results.json"
    """Where the rows go."""


def main(config: Config) -> None:
    """Compiles what is not there yet, row by row, and prints the table."""
    version = _version()
    rows = json.loads(config.out.read_text())["rows"] if config.out.exists() else []
    cases = [(m, p, h) for m in config.models for p in config.pods for h in config.holds]
    for model, pod, hold in cases:
        key = {"model": model, "pod": pod, "hold": hold, "batch": config.batch, "version": version}
        if any(key.items() <= row.items() for row in rows):
            continue
        print(f"compiling {model} for {pod}, {hold} ...", flush=True)
        row = {**key, **measure(model, pod, hold, config)}
        rows = [r for r in rows if (r["model"], r["pod"], r["hold"], r["batch"]) != (model, pod, hold, config.batch)]
        rows = sorted(
            [*rows, row], key=lambda r: (r["model"], list(PODS).index(r["pod"]), list(HOLDS).index(r["hold"]))
        )
        write_json(config.out, {"versions": _packages(), "rows": rows})
    print(table(rows))


def measure(name: str, pod: str, hold: str, config: Config) -> dict[str, Any]:
    """One row: bytes per chip, FLOPs per chip and collectives of the compiled step, or why it does not compile."""
    maps = HOLDS[hold]
    devices = topologies.get_topology_desc(platform="tpu", topology_name=PODS[pod].topology).devices
    mesh = sharding.make_mesh(MeshConfig(fsdp=min(config.fsdp, len(devices))), list(devices))
    shapes, run = model_shapes(name), FinetuneConfig("", maps=maps)
    tx = make_optimizer(run, holding(run, mx.presets.vla(), shapes))
    like = abstract_state(shapes, tx, mesh, LARGE, maps.anchor_memory)
    step = make_train_step(make_loss(VLA(CONFIGS[name])), tx, like, mesh, seed=0)
    row = {"chips": len(devices), "mesh": dict(mesh.shape), **components(like)}
    start = time.perf_counter()
    try:
        compiled = step.lower(like, abstract_batch(name, config.batch, mesh)).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {**row, "error": str(error).splitlines()[0]}
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return {
        **row,
        "arguments": memory.argument_size_in_bytes,
        "host": memory.host_argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "program": memory.generated_code_size_in_bytes,
        "peak": held + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes,
        "flops": cost["flops"],
        "bytes_accessed": cost["bytes accessed"],
        "collectives": collectives(compiled.as_text()),
        "compile_seconds": round(time.perf_counter() - start, 1),
    }


def components(like: TrainState) -> dict[str, int]:
    """Bytes per chip of parameters, Adam's moments and anchor, and the largest parameter that is not split."""
    shards = {"params": _bytes(like.params), "moments": 0, "anchor": 0}
    for path, leaf in jax.tree_util.tree_flatten_with_path(like.opt_state)[0]:
        names = {getattr(key, "name", "") for key in path}
        if "anchor" in names:
            shards["anchor"] += _bytes(leaf)
        elif names & {"mu", "nu"}:
            shards["moments"] += _bytes(leaf)
    whole = [x.size for x in jax.tree.leaves(like.params) if x.sharding.is_fully_replicated]
    return {**shards, "largest_whole_parameter": max(whole, default=0)}


def _bytes(tree: Any) -> int:
    return sum(int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def table(rows: list[dict[str, Any]]) -> str:
    """The table of this folder's README, of the models, pods and batches that have all rows; sizes in GiB per chip."""
    head = ["model, pod (data x fsdp)", "params + moments", "θ0", "Adam", "MAPS", "θ0 in bf16", "θ0 on the host"]
    head += ["bytes accessed, MAPS / Adam", "collectives + those of MAPS"]
    lines = [head, ["---"] * len(head)]
    for model, pod, batch in dict.fromkeys((row["model"], row["pod"], row["batch"]) for row in rows):
        found = {r["hold"]: r for r in rows if (r["model"], r["pod"], r["batch"]) == (model, pod, batch)}
        if found.keys() != HOLDS.keys():
            continue
        adam, maps = found["adam"], found["maps"]
        sizes = [f"{size / GIB:.2f}" for size in (maps["params"] + maps["moments"], maps["anchor"])]
        costs = ["–", "–"]
        if "error" not in adam and "error" not in maps:
            without, held = (sum(row["collectives"].values()) for row in (adam, maps))
            costs = [f"{maps['bytes_accessed'] / adam['bytes_accessed']:.2f}", f"{without} + {held - without}"]
        mesh = f"{maps['mesh']['data']} x {maps['mesh']['fsdp']}"
        lines.append([f"`{model}`, {pod} ({mesh})", *sizes, *(_peak(found[hold]) for hold in HOLDS), *costs])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _peak(row: dict[str, Any]) -> str:
    if "error" in row:
        return "does not fit"
    return f"{row['peak'] / GIB:.2f}{'' if row['peak'] < PODS[row['pod']].memory else ', too much'}"


def _version() -> str:
    """Hash of the sources that decide what is compiled."""
    digest = hashlib.sha256()
    for pattern in COMPILED:
        for file in sorted(SOURCES.glob(pattern)):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def _packages() -> dict[str, str]:
    names = ("jax", "libtpu", "flax", "optax")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}


if __name__ == "__main__":
    main(tyro.cli(Config))
