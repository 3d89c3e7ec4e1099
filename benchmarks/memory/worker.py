"""One case, measured in this process: `worker.py '{"model": "tiny", ...}'` prints a line of JSON.

A process of its own, because the number of host devices is fixed at start-up and a device's peak is that of a process.
"""

import dataclasses
import gc
import json
import sys
from collections import Counter, defaultdict
from typing import Any

import jax
import numpy as np

import maps_optax as mx
from benchmarks.batch import abstract_batch
from benchmarks.optimizer_step.cases import step_of
from octo_integration.config import FinetuneConfig, MapsConfig, MeshConfig
from octo_integration.model.config import LoraConfig
from octo_integration.model.sizes import CONFIGS
from octo_integration.model.vla import VLA
from octo_integration.state import sharding
from octo_integration.state.methods import holding
from octo_integration.state.optimizer import make_optimizer
from octo_integration.state.train_state import TrainState, abstract_state, init_state
from octo_integration.train.step import make_loss, make_train_step


@dataclasses.dataclass(frozen=True)
class Case:
    """What holds the weights, and what of them is trained."""

    maps: MapsConfig = MapsConfig()
    lora: LoraConfig = LoraConfig()


CASES = {
    "adam": Case(MapsConfig(method="adam")),
    "maps": Case(),
    "maps, θ0 in bf16": Case(MapsConfig(anchor_dtype="bfloat16")),
    "l2_sp": Case(MapsConfig(method="l2_sp", lambda_max=0.01)),
    "LoRA, rank 8": Case(lora=LoraConfig(rank=8)),
}
# `tiny` has hardly a leaf that finetune's own threshold would split; with this one most of its bytes are, as those of
# large models.
MIN_SIZE = 2**10
STATISTICS = set(mx.SPDState._fields) - {"count", "anchor"}
# (device, address)
Buffer = tuple[int, int]


def measure(model: str, case: str, devices: int, batch: int, run: bool) -> dict[str, Any]:
    """Bytes on one device: of the state and batch by their shapes, of the compiled programs, and, if it is `run`, live.

    Args:
      model, case: of `CONFIGS` and `CASES`.
      devices: that share the parameters and the batch.
      batch: samples over all devices.
      run: whether to allocate it and take two steps.
    """
    config = FinetuneConfig("", maps=CASES[case].maps, lora=CASES[case].lora)
    mesh = sharding.make_mesh(MeshConfig(fsdp=devices), jax.devices()[:devices])
    vla = VLA(dataclasses.replace(CONFIGS[model], dtype="float32", lora=config.lora))
    samples = abstract_batch(model, batch, mesh)
    key = jax.eval_shape(lambda: jax.random.key(0))
    shapes = jax.eval_shape(vla.init, key, samples["observation"], samples["task"])["params"]
    tx = make_optimizer(config, holding(config, mx.presets.vla(), shapes))
    like = abstract_state(shapes, tx, mesh, MIN_SIZE)
    jitted: Any = make_train_step(make_loss(vla), tx, like, mesh, seed=0)
    step = jitted.lower(like, samples).compile()
    row = {
        "model": model,
        "case": case,
        "devices": devices,
        "batch": batch,
        "parameters": sum(x.size for x in jax.tree.leaves(shapes)),
        "shapes": {name: sum(map(shard_bytes, leaves)) for name, leaves in components(like, samples).items()},
        "step": {**program(step), "unread": unread(step, (like, samples))},
        "optimizer": program(optimizer_alone(tx, like)),
    }
    if run:
        row |= running(step, tx, like, samples)
    return row


def components(state: TrainState, batch: Any) -> dict[str, list[Any]]:
    """The leaves, by what they are for; `other` are the counters."""
    parts: dict[str, list[Any]] = {
        "parameters": jax.tree.leaves(state.params),
        "frozen": jax.tree.leaves(state.frozen),
        **{name: [] for name in ("moments", "anchor", "statistics")},
        "batch": jax.tree.leaves(batch),
        "other": [state.step],
    }
    for path, leaf in jax.tree_util.tree_flatten_with_path(state.opt_state)[0]:
        names = {getattr(key, "name", "") for key in path}
        if "anchor" in names:
            parts["anchor"].append(leaf)
        elif names & {"mu", "nu"}:
            parts["moments"].append(leaf)
        else:
            parts["statistics" if names & STATISTICS else "other"].append(leaf)
    return parts


def optimizer_alone(tx: Any, like: TrainState) -> Any:
    """The optimizer's part of the step, compiled for gradients that are given."""
    trained = like.params, like.opt_state
    at = jax.tree.map(lambda x: x.sharding, trained)
    return jax.jit(step_of(tx), donate_argnums=(0, 1), out_shardings=at).lower(*trained, like.params).compile()


def program(compiled: Any) -> dict[str, int]:
    """The compiler's account of a program, per device."""
    memory = compiled.memory_analysis()
    return {
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "donated": memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
    }


def unread(compiled: Any, arguments: Any) -> int:
    """Bytes of the arguments that the program does not have, because it does not read them: they have no layout."""
    formats = jax.tree.leaves(compiled.input_formats[0])
    return sum(shard_bytes(x) for x, at in zip(jax.tree.leaves(arguments), formats, strict=True) if at.layout is None)


def shard_bytes(x: Any) -> int:
    """Bytes of a leaf on each device."""
    return int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize


def running(step: Any, tx: Any, like: TrainState, samples: Any) -> dict[str, Any]:
    """What is live on the fullest device between two steps, and where the backend knows it the peak so far."""
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: 0.02 * rng.standard_normal(x.shape, np.float32), like.model)
    state = init_state(params, tx, like)
    batch = jax.tree.map(lambda x: jax.device_put(np.ones(x.shape, x.dtype), x.sharding), samples)
    del params
    before = peak()
    for _ in range(2):
        state, metrics = jax.block_until_ready(step(state, batch))
    gc.collect()
    parts = {**components(state, batch), "metrics": jax.tree.leaves(metrics)}
    owner = {buffer: name for name, leaves in parts.items() for x in leaves for buffer in buffers(x)}
    live = {buffer: size for x in jax.live_arrays() for buffer, size in buffers(x).items()}
    held: defaultdict[int, Counter[str]] = defaultdict(Counter)
    for buffer, size in live.items():
        held[buffer[0]][owner.get(buffer, "other")] += size
    fullest = max(held.values(), key=Counter.total)
    return {"live": {name: fullest[name] for name in parts}, "peak": peak(), "peak of init": before}


def buffers(x: jax.Array) -> dict[Buffer, int]:
    """Bytes of an array's buffers on this process's devices."""
    shards = [shard.data for shard in x.addressable_shards if shard.data.nbytes]
    return {(next(iter(data.devices())).id, data.unsafe_buffer_pointer()): data.nbytes for data in shards}


def peak() -> int | None:
    """The most bytes that this process has had in use on the first device; None where the backend does not count."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


if __name__ == "__main__":
    kind = {"backend": jax.default_backend(), "device": jax.devices()[0].device_kind}
    print(json.dumps({**kind, **measure(**json.loads(sys.argv[1]))}))
