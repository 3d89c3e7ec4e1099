"""What Orbax has stored is told as Orbax tells it, and without asking TensorStore for a specification."""

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore as ts

from octo_integration.common import stored

TREE = {
    "step": jnp.zeros((), jnp.int32),
    "params": {"a.b": {"kernel": jnp.ones((3, 4)), "scale": jnp.ones(2, jnp.bfloat16)}, "öl": np.ones((2, 1, 3))},
    "state": {"0": jnp.ones((), bool), "1": jnp.ones((2, 3), jnp.uint32)},
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("stored") / "größe 2%20"
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(directory, args=ocp.args.PyTreeSave(TREE))
    return directory


def test_shapes_and_types_are_those_of_what_was_stored(directory):
    assert stored.shapes(directory) == jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), TREE)


def test_no_specification_is_asked_for(directory, monkeypatch):
    monkeypatch.setattr(ts, "open", lambda *_, **__: pytest.fail("an array was opened"))
    stored.shapes(directory)


def test_what_is_not_there_is_an_error(directory, tmp_path):
    with pytest.raises(FileNotFoundError):
        stored.shapes(tmp_path)
