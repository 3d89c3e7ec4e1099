"""What will MAPS cost on a pod? Arithmetic from what was compiled; nothing is run.

    python -m benchmarks.compiled_step.pods

θ0 per chip, the bytes of the all-reduce, and the share of a training step that its traffic takes: from
`compiled_step/results.json` and `tpu_aot/results.json`, the model's shapes, and figures of data sheets. The all-reduces
are also counted in the optimizer's step compiled for host devices.
"""

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import jax
import tyro

import maps_optax as mx
from benchmarks import hlo
from benchmarks.optimizer_step.cases import step_of
from benchmarks.train_step.case import step_flops
from octo_integration.config import FinetuneConfig, MapsConfig, MeshConfig, Method
from octo_integration.model.named import model_shapes
from octo_integration.state import sharding
from octo_integration.state.methods import holding
from octo_integration.state.optimizer import Optimizer, make_optimizer
from octo_integration.state.train_state import abstract_state

HERE = Path(__file__).parent
WORD = 4
# ⟨g, d⟩, ‖d‖² and ‖d + u‖² − ‖d‖² of each tensor.
SUMS = 3
# leaf, strength, carry, drift, triggered and pull of each tensor.
STATISTICS = 8


class Chip(NamedTuple):
    """Figures of a data sheet, and which rows of compiled_step/results.json are of it."""

    bandwidth: float  # bytes/s of main memory
    peak: float  # FLOP/s in bfloat16
    clock: float | None  # Hz; of a TPU peak / (2 x 128 x 128 x its matrix units)
    targets: tuple[str, ...]


CHIPS = {
    "v5e": Chip(819e9, 197e12, 197e12 / (2 * 128**2 * 4), ("v5e-1", "v5e-16", "v5e-256")),
    "v5p": Chip(2765e9, 459e12, 459e12 / (2 * 128**2 * 8), ("v5p-128",)),
    "H100": Chip(3350e9, 989e12, None, ("h100", "h100 x 8")),
}
# Chips that share one copy of the parameters.
PODS = (("v5e", 16), ("v5e", 64), ("v5p", 64), ("H100", 8))
# Of the peak that a training step reaches: assumed.
UTILIZATION = 0.45


@dataclasses.dataclass(frozen=True)
class Config:
    """Prints the tables of the section "Pods".

    python -m benchmarks.compiled_step.pods --model mini
    """

    model: str = "mini"
    """Whose step the shares are of."""
    batches: tuple[int, ...] = (1, 4, 16)
    """Samples per chip."""
    devices: tuple[int, ...] = (2, 8)
    """Numbers of host devices for which the optimizer's step is compiled."""


def main(config: Config) -> None:
    """Prints the three tables."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", max(config.devices))
    compiled = json.loads((HERE / "results.json").read_text())["rows"]
    pods = json.loads((HERE.parent / "tpu_aot" / "results.json").read_text())["rows"]
    print(anchors(pods), statistics(config.devices), shares(config, compiled), sep="\n\n")


class Held(NamedTuple):
    """What MAPS holds of a model on a mesh."""

    parameters: int  # anchored
    tensors: int  # anchored tensors, and slices of those that stack layers
    split: int  # those of leaves that the mesh splits


def held(model: str, mesh: jax.sharding.Mesh) -> Held:
    """Counts from shapes."""
    shapes = model_shapes(model)
    like = abstract_state(shapes, _optimizer("maps", shapes), mesh, 2**16)
    anchor = next(
        node.anchor for node in jax.tree.leaves(like.opt_state, is_leaf=_is_spd) if isinstance(node, mx.SPDState)
    )
    slices = Counter(s.path for s in mx.slices(mx.presets.vla(), shapes))
    leaves = [(slices["/".join(k.key for k in path)], x) for path, x in jax.tree_util.tree_flatten_with_path(anchor)[0]]
    return Held(
        parameters=sum(x.size for _, x in leaves),
        tensors=sum(n for n, _ in leaves),
        split=sum(n for n, x in leaves if not x.sharding.is_fully_replicated),
    )


def _optimizer(method: Method, shapes: Any) -> Optimizer:
    run = FinetuneConfig("", maps=MapsConfig(method=method))
    return make_optimizer(run, holding(run, mx.presets.vla(), shapes))


def _is_spd(node: Any) -> bool:
    return isinstance(node, mx.SPDState)


def anchors(rows: list[dict[str, Any]]) -> str:
    """θ0 per chip by arithmetic and by the shardings of `tpu_aot`."""
    head = ["model, pod", "anchored parameters", "chips per copy", "θ0: 4 bytes / chips, MB", "by the shardings, MB"]
    lines = [[*head, "in bf16: 2 bytes / chips, MB", "by the shardings, MB"]]
    lines.append(["---"] * len(lines[0]))
    here = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    count = {model: held(model, here).parameters for model in dict.fromkeys(row["model"] for row in rows)}
    for row in rows:
        if row["hold"] != "maps":
            continue
        half = next(
            r for r in rows if (r["model"], r["pod"], r["hold"]) == (row["model"], row["pod"], "maps, bf16 anchor")
        )
        copy, n = row["mesh"]["fsdp"], count[row["model"]]
        sizes = (4 * n / copy, row["anchor"], 2 * n / copy, half["anchor"])
        lines.append([f"`{row['model']}`, {row['pod']}", f"{n:,}", str(copy), *(f"{x / 1e6:.1f}" for x in sizes)])
    return _table(lines)


def statistics(devices: tuple[int, ...]) -> str:
    """The numbers per tensor: those that the state keeps, and those that are added up over the chips at each step."""
    head = ["model", "tensors and slices", "statistics kept, bytes", "12 bytes each", "12 bytes each of split leaves"]
    lines = [[*head, *(f"all-reduced beyond Adam's, {n} devices" for n in devices)]]
    lines.append(["---"] * len(lines[0]))
    for model in ("tiny", "mini", "openvla"):
        meshes = [sharding.make_mesh(MeshConfig(fsdp=n), jax.devices()[:n]) for n in devices]
        found = held(model, meshes[-1])
        sizes = [STATISTICS * WORD * found.tensors, SUMS * WORD * found.tensors, SUMS * WORD * found.split]
        sizes += [all_reduced(model, "maps", mesh) - all_reduced(model, "adam", mesh) for mesh in meshes]
        lines.append([f"`{model}`", str(found.tensors), *(f"{size:,}" for size in sizes)])
    return _table(lines)


def all_reduced(model: str, method: Method, mesh: jax.sharding.Mesh) -> int:
    """Bytes that the all-reduces of the optimizer's step add up."""
    shapes = model_shapes(model)
    tx = _optimizer(method, shapes)
    like = abstract_state(shapes, tx, mesh, 2**16)
    trained = like.params, like.opt_state
    step = jax.jit(step_of(tx), donate_argnums=(0, 1), out_shardings=jax.tree.map(lambda x: x.sharding, trained))
    return hlo.all_reduced(step.lower(*trained, like.params).compile().as_text() or "")


def shares(config: Config, rows: list[dict[str, Any]]) -> str:
    """What MAPS adds to a step beside the step's own time, for several samples per chip."""
    head = ["chip", "chips per copy", "anchored per chip", "words beyond Adam's", "by bandwidth, ms", "by cycles, ms"]
    lines = [[*head, "step, ms per sample", *(f"share at {n} per chip" for n in config.batches)]]
    lines.append(["---"] * len(lines[0]))
    here = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    anchored, work = held(config.model, here).parameters, step_flops(config.model, here)
    for name, copy in PODS:
        chip, n = CHIPS[name], anchored / copy
        words = added(rows, chip, "main")
        times = [words * WORD * n / chip.bandwidth]
        if chip.clock is not None:
            times.append(added(rows, chip, "cycles") * n / chip.clock)
        sample = work / (chip.peak * UTILIZATION)
        cells = [name, str(copy), f"{n / 1e6:.1f} M", f"{words:.2f}", f"{1e3 * times[0]:.2f}"]
        cells += [f"{1e3 * times[1]:.2f}" if len(times) > 1 else "–", f"{1e3 * sample:.1f}"]
        for size in config.batches:
            low, *high = (t / (t + size * sample) for t in times)
            cells.append("–".join(f"{100 * share:.1f}" for share in (low, *high)) + " %")
        lines.append(cells)
    return f"{work / 1e12:.2f} TFLOP per sample of `{config.model}`\n\n{_table(lines)}"


def added(rows: list[dict[str, Any]], chip: Chip, what: str) -> float:
    """Words, or cycles, per parameter that MAPS has beyond Adam, in the tree where they are most."""
    by = {(row["target"], row["tree"], row["optimizer"]): row for row in rows if row["target"] in chip.targets}

    def per(row: dict[str, Any]) -> float:
        return row[what] if what == "main" else row[what] / row["parameters per chip"]

    return max(per(row) - per(by[t, tree, "adam"]) for (t, tree, name), row in by.items() if name == "maps")


def _table(lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    main(tyro.cli(Config))
