"""The hint that splits activations by example finds the mesh of the step."""

import jax
import jax.numpy as jnp
import pytest

from octo_integration.config import MeshConfig
from octo_integration.model.partition import by_example, within
from octo_integration.state.sharding import make_mesh


def constraints() -> str:
    return str(jax.make_jaxpr(by_example)(jnp.zeros((4, 3))))


@pytest.mark.parametrize("shown", [True, False])
def test_examples_are_split_within_a_mesh_also_where_jax_does_not_show_how(monkeypatch, shown: bool) -> None:
    if not shown:  # as JAX 0.6
        monkeypatch.delattr(jax.sharding, "use_abstract_mesh", raising=False)
    assert "sharding_constraint" not in constraints()
    with within(make_mesh(MeshConfig(), jax.devices()[:1])):
        assert "(('data', 'fsdp'),)" in constraints()
    assert "sharding_constraint" not in constraints()
