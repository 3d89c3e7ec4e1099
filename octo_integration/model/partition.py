"""A hint for the partitioner: activations are split by example, never along their features."""

from contextlib import AbstractContextManager

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

BATCH_AXES = ("data", "fsdp")


def within(mesh: Mesh) -> AbstractContextManager[object]:
    """The context in which `by_example` splits over this mesh, also inside jit."""
    # JAX 0.6, the last for Python 3.10, has it but does not show it.
    use = getattr(jax.sharding, "use_abstract_mesh", None) or jax._src.mesh.use_abstract_mesh
    return use(mesh.abstract_mesh)


def by_example(x: jax.Array) -> jax.Array:
    """x [B, ...], whose examples are split over the mesh in context; x itself where there is none.

    Parameters are split along features (FSDP). Without the hint XLA may split activations alike and gather the whole
    batch on every device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not set(BATCH_AXES) <= set(mesh.axis_names):
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(BATCH_AXES)))
