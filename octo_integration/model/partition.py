"""A hint for the partitioner: activations are split by example, never along their features."""

import jax
from jax.sharding import PartitionSpec

BATCH_AXES = ("data", "fsdp")


def by_example(x: jax.Array) -> jax.Array:
    """x [B, ...], whose examples are split over the mesh in context; x itself where there is none.

    Parameters are split along features (FSDP). Without the hint XLA may split activations alike and gather the whole
    batch on every device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not set(BATCH_AXES) <= set(mesh.axis_names):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(BATCH_AXES))
