"""Where arrays live: the mesh (data, fsdp), the rule for parameters, and batches.

Parameters are split along their largest axis that the fsdp axis divides; batches along (data, fsdp), so every device
works on its own examples. `jax.jit` inserts the collectives (GSPMD). One device is a mesh of 1 x 1, no special case.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from octo_integration.config import MeshConfig

AXES = ("data", "fsdp")
Tree = Any


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """The device mesh (data, fsdp) of a run.

    Args:
      config: the two axis sizes; -1 (for one of them) takes all devices that the other leaves.
      devices: default: all devices of all processes.

    Raises:
      ValueError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    data, fsdp = config.data, config.fsdp
    total = len(devices)
    if data == -1 and fsdp > 0:
        data = total // fsdp
    elif fsdp == -1 and data > 0:
        fsdp = total // data
    if data < 1 or fsdp < 1 or data * fsdp != total:
        raise ValueError(
            f"mesh: data={config.data} x fsdp={config.fsdp} does not make up the {total} device(s) here; give sizes "
            "that multiply to it, or -1 for one of the two."
        )
    grid = np.asarray(devices).reshape(data, fsdp)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto, AxisType.Auto))


def replicated(mesh: Mesh) -> NamedSharding:
    """One whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Axis 0 (examples) split over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def param_shardings(params: Tree, mesh: Mesh, threshold: int) -> Tree:
    """Each leaf's sharding: the largest axis that the fsdp axis divides, if the leaf has `threshold` elements or more.

    Small leaves (biases, norms) stay whole: splitting them costs a collective each and saves nothing. Of equally large
    axes the last one is split, so a stack of layers keeps its layers whole.
    """
    parts = mesh.shape["fsdp"]

    def rule(leaf: Any) -> NamedSharding:
        shape = leaf.shape
        axes = [i for i, n in enumerate(shape) if n % parts == 0]
        if parts == 1 or not axes or np.prod(shape) < threshold:
            return replicated(mesh)
        axis = max(axes, key=lambda i: (shape[i], i))
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, "fsdp"))

    return jax.tree.map(rule, params)


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


def put_local(batch: Mapping[str, Any], mesh: Mesh) -> Tree:
    """Puts each process's share of a batch on the mesh, split over its examples.

    Raises:
      ValueError: the batch size is not divisible by the number of devices.
    """
    sharding = batch_sharding(mesh)
    rows = len(jax.tree.leaves(batch)[0]) * jax.process_count()
    if rows % mesh.size:
        raise ValueError(
            f"batch of {rows} examples cannot be split over {mesh.size} devices; make data.batch_size a multiple of it."
        )
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def put_whole(batch: Mapping[str, Any], mesh: Mesh) -> Tree:
    """Puts a batch that every process holds in full on the mesh, split over its examples (used for evaluation)."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index: x[index]), batch)
