"""Meshes, the rule for parameters, and that eight devices train like one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from octo_integration.config import MeshConfig
from octo_integration.state import sharding

ROOT = Path(__file__).parents[3]

TRAIN = """
import json
import jax, numpy as np
from octo_integration.config import MapsConfig, MeshConfig, OptimizerConfig
from octo_integration.train import finite
from octo_integration.state import sharding
from octo_integration.train.step import make_loss, make_train_step
from octo_integration.state.train_state import abstract_state, init_state
from tests.octo_integration import micro

def run(devices, data, fsdp, tensor, accumulate):
    mesh = sharding.make_mesh(MeshConfig(data, fsdp, tensor), jax.devices()[:devices])
    maps = MapsConfig(method="maps", lambda_max=2.0)
    tx = micro.optimizer_of(OptimizerConfig(lr=1e-2, warmup=2, steps=20, accumulate=accumulate), maps)
    like = abstract_state(micro.params(), tx, mesh, 64)
    step = make_train_step(make_loss(micro.Micro()), tx, like, mesh, micro.SEED)
    state, losses = init_state(micro.params(), tx, like), []
    for i in range(12):
        state, metrics = step(state, sharding.put_local(micro.batch(i, 16), mesh))
        losses.append(float(metrics["loss"]))
    inner = state.opt_state.inner_opt_state if accumulate > 1 else state.opt_state
    kernel = lambda tree: str(tree["vision"]["blocks"]["fc"]["kernel"].sharding.spec)
    where = {"params": kernel(state.params), "anchor": kernel(inner[3].anchor), "mu": kernel(inner[2][0].mu)}
    return {"losses": losses, "where": where}

def shards(state):
    return [[np.array(shard.data) for shard in leaf.addressable_shards] for leaf in jax.tree.leaves(state)]

def same(a, b):
    return all(np.array_equal(x, y) for xs, ys in zip(a, b) for x, y in zip(xs, ys))

def skipping():
    # Where a batch is spoiled, one example's target is not finite, so the loss of one of its parts is not.
    mesh = sharding.make_mesh(MeshConfig(2, 2, 2))
    tx = micro.optimizer_of(OptimizerConfig(lr=1e-2, warmup=0, steps=20), MapsConfig())
    like = abstract_state(micro.params(), tx, mesh, 64)
    step = make_train_step(make_loss(micro.Micro()), tx, like, mesh, micro.SEED, "skip")
    state, decisions, held = init_state(micro.params(), tx, like), [], []
    for i, (row, value) in enumerate([(0, 0.0), (1, np.nan), (0, 0.0), (14, np.inf), (0, 0.0)]):
        batch = micro.batch(i, 16)
        batch["action"][row, 0, 2] = value
        before = shards((state.params, state.opt_state))
        state, metrics = step(state, sharding.put_local(batch, mesh))
        held.append(same(before, shards((state.params, state.opt_state))))
        decisions.append([bool(shard.data) for shard in metrics[finite.SKIPPED].addressable_shards])
    where = jax.tree.map(lambda leaf, at: leaf.sharding.is_equivalent_to(at.sharding, leaf.ndim), state, like)
    return {"decisions": decisions, "held": held, "where": all(jax.tree.leaves(where)), "step": int(state.step)}

def refused(batch_size):
    try:
        sharding.batch_share(batch_size, mesh)
    except ValueError as error:
        return str(error)

mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
share = {"share": sharding.batch_share(12, mesh), "refused": refused(10)}
print(json.dumps({**share, "one": run(1, 1, 1, 1, 1), "eight": run(8, 8, 1, 1, 1), "two_by_four": run(8, 2, 4, 1, 1),
                  "cube": run(8, 2, 2, 2, 1), "skipping": skipping(),
                  "one_accumulated": run(1, 1, 1, 1, 2), "accumulated": run(8, 1, -1, 1, 2)}))
"""


@pytest.fixture(scope="module")
def runs():
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [sys.executable, "-c", TRAIN], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("many", "one"),
    [("eight", "one"), ("two_by_four", "one"), ("cube", "one"), ("accumulated", "one_accumulated")],
)
def test_eight_devices_train_like_one(runs, many, one):
    np.testing.assert_allclose(runs[many]["losses"], runs[one]["losses"], atol=1e-5)


def test_a_batch_that_is_bad_on_one_device_is_skipped_on_all_and_changes_no_shard(runs):
    found, bad = runs["skipping"], [False, True, False, True, False]
    assert found["decisions"] == [[each] * 8 for each in bad]
    assert found["held"] == bad
    assert found["where"] and found["step"] == 5


def test_a_batch_that_the_mesh_cannot_split_is_refused(runs):
    assert runs["share"] == [0, 1]
    assert "data.batch_size is 10, which cannot be split into the 4 parts" in runs["refused"]


@pytest.mark.parametrize("name", ["two_by_four", "cube", "accumulated"])
def test_moments_and_anchors_live_with_their_parameters(runs, name):
    where = runs[name]["where"]
    assert "fsdp" in where["params"]
    assert where["anchor"] == where["mu"] == where["params"]


@pytest.mark.parametrize(("kinds", "found"), [(("device", "pinned_host"), "pinned_host"), (("unpinned_host",), None)])
def test_on_host_is_where_the_device_is_where_it_knows_no_other_memory(monkeypatch, kinds, found):
    at = SimpleNamespace(with_memory_kind=lambda kind: kind)
    device = SimpleNamespace(addressable_memories=lambda: [SimpleNamespace(kind=kind) for kind in kinds])
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert sharding.on_host(at) == (found or at)


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (MeshConfig(), {"data": 1, "fsdp": 1, "tensor": 1}),
        (MeshConfig(data=1, fsdp=-1), {"data": 1, "fsdp": 1, "tensor": 1}),
        (MeshConfig(data=1, tensor=-1), {"data": 1, "fsdp": 1, "tensor": 1}),
    ],
)
def test_mesh_of_one_device(config, shape):
    assert dict(sharding.make_mesh(config, jax.devices()[:1]).shape) == shape


@pytest.mark.parametrize(
    "config", [MeshConfig(2), MeshConfig(-1, 3), MeshConfig(-1, -1), MeshConfig(0), MeshConfig(tensor=2)]
)
def test_a_mesh_that_does_not_fit_is_refused(config):
    with pytest.raises(ValueError, match=r"mesh: data=.* the 1 device\(s\)"):
        sharding.make_mesh(config, jax.devices()[:1])


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((64, 128), PartitionSpec(None, "fsdp")),  # the largest axis
        ((128, 64), PartitionSpec("fsdp")),
        ((64, 64), PartitionSpec(None, "fsdp")),  # of equals the last: a stack keeps its layers whole
        ((3, 30, 101), PartitionSpec()),  # nothing divides
        ((3, 64, 101), PartitionSpec(None, "fsdp")),  # the largest that divides
        ((8,), PartitionSpec()),  # too small to be worth it
        ((), PartitionSpec()),
    ],
)
def test_the_rule_for_parameters(shape, spec):
    mesh = AbstractMesh((2, 4, 1), sharding.AXES)
    leaf = jax.ShapeDtypeStruct(shape, "float32")
    assert sharding.param_shardings({"w": leaf}, mesh, 64)["w"].spec == spec


@pytest.mark.parametrize(
    ("path", "shape", "spec"),
    [
        ("language/blocks/attn/query/kernel", (24, 896, 14, 64), PartitionSpec(None, "fsdp", "tensor")),
        ("language/blocks/attn/out/kernel", (24, 14, 64, 896), PartitionSpec(None, "tensor", None, "fsdp")),
        ("language/blocks/mlp/up/kernel", (24, 896, 4864), PartitionSpec(None, "fsdp", "tensor")),
        ("language/blocks/mlp/down/kernel", (24, 4864, 896), PartitionSpec(None, "tensor", "fsdp")),
        ("language/blocks_7/mlp/down/kernel", (4864, 896), PartitionSpec("tensor", "fsdp")),  # not scanned
        ("language/blocks/attn/key/kernel", (24, 896, 1, 64), PartitionSpec(None, "fsdp")),  # one head for two
        ("language/embed/embedding", (151_936, 896), PartitionSpec("tensor", "fsdp")),
        ("siglip/blocks/mlp/fc1/kernel", (27, 1154, 4304), PartitionSpec(None, None, "tensor")),  # 4 x 288.5
        ("siglip/pos_embed", (256, 1152), PartitionSpec(None, "fsdp")),  # by no rule
    ],
)
def test_the_rules_by_path(path, shape, spec):
    mesh = AbstractMesh((2, 4, 2), sharding.AXES)
    tree = jax.ShapeDtypeStruct(shape, "float32")
    for key in reversed(path.split("/")):
        tree = {key: tree}
    (found,) = jax.tree.leaves(sharding.param_shardings(tree, mesh, 64))
    assert found.spec == spec
