"""Where arrays live: the mesh (data, fsdp, tensor), the rule for each parameter, and batches.

`data` and `fsdp` split the batch; `fsdp` also splits every large parameter along one axis (it is gathered where it is
used), `tensor` splits heads and hidden units, as Megatron does (arXiv 1909.08053). `jax.jit` inserts the collectives
(GSPMD). One device is a mesh of 1 x 1 x 1, no special case.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import maps_optax as mx
from octo_integration.config import MeshConfig

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
Tree = Any

# Path of a parameter -> mesh axes of its last dimensions; a leading axis that stacks the blocks of nn.scan stays whole.
# The first match wins. A dimension that its axis does not divide is kept whole, except that fsdp then goes to the
# largest dimension that it does divide.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r".*attn/(query|key|value)/kernel", ("fsdp", "tensor", None)),
    (r".*attn/(query|key|value)/bias", ("tensor", None)),
    (r".*attn/out/kernel", ("tensor", None, "fsdp")),
    (r".*mlp/(gate|up|fc1|wi)/kernel", ("fsdp", "tensor")),
    (r".*mlp/fc1/bias", ("tensor",)),
    (r".*mlp/(down|fc2|wo)/kernel", ("tensor", "fsdp")),
    (r"bridge/fc[13]/kernel", ("fsdp", "tensor")),
    (r"bridge/fc2/kernel", ("tensor", "fsdp")),
    (r".*embed/embedding", ("tensor", "fsdp")),
    (r"language/lm_head/kernel", ("fsdp", "tensor")),
    (r".*lora_a", ("fsdp", None)),
    (r".*lora_b", (None, "fsdp")),
)


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """The device mesh (data, fsdp, tensor) of a run.

    Args:
      config: the axis sizes; -1 (for one of them) takes all devices that the others leave.
      devices: default: all devices of all processes.

    Raises:
      ValueError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    asked = {name: getattr(config, name) for name in AXES}
    left, rest = divmod(len(devices), math.prod(n for n in asked.values() if n != -1) or 1)
    sizes = {name: left if n == -1 else n for name, n in asked.items()}
    open_axes = sum(n == -1 for n in asked.values())
    if min(sizes.values()) < 1 or rest or open_axes > 1 or math.prod(sizes.values()) != len(devices):
        raise ValueError(
            f"mesh: {' x '.join(f'{name}={n}' for name, n in asked.items())} does not make up the {len(devices)} "
            "device(s) here; give sizes that multiply to it, or -1 for one of them."
        )
    grid = np.asarray(devices).reshape(*sizes.values())
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """One whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Axis 0 (examples) split over the data and fsdp axes."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_parts(mesh: Mesh) -> int:
    """Into how many parts a batch is split."""
    return math.prod(mesh.shape[name] for name in BATCH_AXES)


def name_of(path: Any) -> str:
    """The keys of a leaf of any pytree, "blocks/0/kernel"."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def param_shardings(params: Tree, mesh: Mesh, threshold: int) -> Tree:
    """Each leaf's sharding by RULES; a leaf that no rule names is split along its largest axis that fsdp divides.

    Leaves of fewer than `threshold` elements (biases, norms) stay whole: splitting them costs a collective each and
    saves nothing.
    """

    def rule(path: Any, leaf: Any) -> NamedSharding:
        if math.prod(leaf.shape) < threshold:
            return replicated(mesh)
        return NamedSharding(mesh, PartitionSpec(*_split(name_of(path), leaf.shape, mesh.shape)))

    return jax.tree_util.tree_map_with_path(rule, params)


def _split(path: str, shape: tuple[int, ...], sizes: Mapping[str, int]) -> list[str | None]:
    """The mesh axis of every dimension of a parameter."""
    named = next((axes for pattern, axes in RULES if re.fullmatch(pattern, path)), ())
    wanted = (None,) * (len(shape) - len(named)) + named
    split = [a if a is not None and sizes[a] > 1 and n % sizes[a] == 0 else None for a, n in zip(wanted, shape)]
    if sizes["fsdp"] > 1 and "fsdp" not in split:
        free = [i for i, n in enumerate(shape) if split[i] is None and n % sizes["fsdp"] == 0]
        if free:  # of equally large axes the last one, so a stack of layers keeps its layers whole
            split[max(free, key=lambda i: (shape[i], i))] = "fsdp"
    while split and split[-1] is None:
        split.pop()
    return split


def opt_state_shardings(tx: Any, opt_state: Tree, shardings: Tree, mesh: Mesh) -> Tree:
    """Shardings of an optimizer state: what mirrors a parameter (moments, anchors, accumulated gradients) lives where
    the parameter lives; counters and per-layer scalars are replicated.

    Args:
      tx: anything with the `init` that made `opt_state`.
    """

    def masked(node: Any) -> bool:  # what Optax puts in place of a leaf that a transformation leaves alone
        return isinstance(node, optax.MaskedNode)

    return optax.tree_utils.tree_map_params(
        tx,
        lambda leaf, sharding: leaf if masked(leaf) else sharding,
        opt_state,
        shardings,
        transform_non_params=lambda _: replicated(mesh),
        is_leaf=masked,
    )


def on_host(at: NamedSharding) -> NamedSharding:
    """The same place in the hosts' memory; where a device knows of its own alone (a CPU's, on JAX 0.6), that one."""
    known = {memory.kind for memory in jax.local_devices()[0].addressable_memories()}
    return at.with_memory_kind("pinned_host") if "pinned_host" in known else at


def anchors_in(shardings: Tree, memory_kind: str) -> Tree:
    """Shardings of an optimizer state, with the anchors of MAPS in another memory of the same devices."""

    def move(node: Any) -> Any:
        if not isinstance(node, mx.SPDState):
            return node
        return node._replace(anchor=jax.tree.map(lambda at: at.with_memory_kind(memory_kind), node.anchor))

    return jax.tree.map(move, shardings, is_leaf=lambda node: isinstance(node, mx.SPDState))


def batch_share(batch_size: int, mesh: Mesh) -> tuple[int, int]:
    """(index, count): this process works on the index-th of `count` equal parts of every batch.

    Processes that differ in the tensor axis alone work on the same rows, so count may be below the process count.

    Raises:
      ValueError: the batch cannot be split over mesh.data x mesh.fsdp, or the mesh gives this process rows that do not
        follow each other.
    """
    if batch_size % batch_parts(mesh):
        raise ValueError(
            f"data.batch_size is {batch_size}, which cannot be split into the {batch_parts(mesh)} parts of mesh.data x "
            "mesh.fsdp; give a multiple of it."
        )
    parts = _local_parts(mesh)
    if parts[-1] - parts[0] != len(parts) - 1 or parts[0] % len(parts) or batch_parts(mesh) % len(parts):
        raise ValueError(
            f"mesh: process {jax.process_index()} would work on parts {parts} of every batch, which do not follow each "
            "other; give a mesh.tensor that divides the devices of a process, or is a multiple of them."
        )
    return parts[0] // len(parts), batch_parts(mesh) // len(parts)


def _local_parts(mesh: Mesh) -> list[int]:
    """Which of the `batch_parts` this process's devices work on, in order."""
    parts = batch_parts(mesh)
    places = batch_sharding(mesh).addressable_devices_indices_map((parts,))
    return sorted({index[0].indices(parts)[0] for index in places.values() if index is not None})


def put_local(batch: Mapping[str, Any], mesh: Mesh) -> Tree:
    """Puts each process's share of a batch (see `batch_share`) on the mesh, split over its examples.

    Raises:
      ValueError: the rows cannot be split over this process's part of mesh.data x mesh.fsdp.
    """
    sharding, parts = batch_sharding(mesh), len(_local_parts(mesh))
    rows = len(jax.tree.leaves(batch)[0])
    if rows % parts:
        raise ValueError(
            f"{rows} examples cannot be split into the {parts} parts of mesh.data x mesh.fsdp here; make the batch "
            f"size a multiple of {batch_parts(mesh)}."
        )
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def put_whole(batch: Mapping[str, Any], mesh: Mesh) -> Tree:
    """Puts a batch that every process holds in full on the mesh, split over its examples (used for evaluation)."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index: x[index]), batch)
