"""The full-size models at reduced depth (and hidden widths): one step with MAPS, sharded over 8 devices."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

STEP = """
import dataclasses, functools, json, sys
import jax, numpy as np
import maps_optax as mx
from octo_integration.config import FinetuneConfig, MeshConfig, OptimizerConfig
from octo_integration.model.sizes import CONFIGS
from octo_integration.model.vla import VLA
from octo_integration.state import sharding
from octo_integration.model.named import random_params
from octo_integration.train.step import make_loss, make_train_step
from octo_integration.state.train_state import abstract_state, init_state
from octo_integration.state.methods import holding
from octo_integration.state.optimizer import make_optimizer

whole = CONFIGS[sys.argv[1]]
towers = {name: dataclasses.replace(tower, depth=2) for name, tower in whole.towers.items() if name != "stem"}
small = {"vocabulary": min(whole.language.vocabulary, 512), "mlp": 512}
if whole.language.width > 1024:  # with all 4096 of Llama's the step takes 12 GB, more than a test may
    small |= {"width": 1024, "heads": 8, "kv_heads": 8}
language = dataclasses.replace(whole.language, depth=1, **small)
t5 = whole.t5 and dataclasses.replace(whole.t5, depth=1, vocabulary=512)
side = 2 * whole.patch
head = dataclasses.replace(whole.head, hidden=256)
config = dataclasses.replace(whole, **towers, language=language, t5=t5, image_size=side, head=head)
model = VLA(config)
mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
params = jax.jit(functools.partial(random_params, model, 1))(jax.random.key(0))
run = FinetuneConfig("", optimizer=OptimizerConfig(warmup=0, steps=2))
tx = make_optimizer(run, holding(run, mx.presets.vla(), params))
like = abstract_state(params, tx, mesh, 2**16)
step = make_train_step(make_loss(model), tx, like, mesh, 0)
state = init_state(params, tx, like)
del params
rng, rows = np.random.default_rng(0), 4
image = lambda *shape: rng.integers(0, 256, (*shape, side, side, 3), dtype=np.uint8)
batch = {
    "observation": {
        **{f"image_{camera}": image(rows, 1) for camera in config.cameras},
        "proprio": rng.normal(size=(rows, 1, config.proprio_dim)).astype(np.float32),
        "timestep_pad_mask": np.ones((rows, 1), bool),
    },
    "task": {
        "tokens": rng.integers(0, 512, (rows, config.instruction_length), dtype=np.int32),
        "mask": np.ones((rows, config.instruction_length), bool),
        **({"image_primary": image(rows)} if config.goal else {}),
    },
    "action": rng.normal(size=(rows, config.chunk, config.action_dim)).astype(np.float32),
    "action_pad_mask": np.ones((rows, config.chunk, config.action_dim), bool),
}
state, metrics = step(state, sharding.put_local(batch, mesh))
large = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(state.params)[0]}
whole_leaves = [name for name, leaf in large.items() if leaf.size >= 2**16 and leaf.sharding.is_fully_replicated]
print(json.dumps({"loss": float(metrics["loss"]), "norm": float(metrics["grad_norm"]), "whole": whole_leaves}))
"""


@pytest.mark.parametrize("name", ["mini", "openvla", "octo_small"])
def test_one_sharded_step(name):
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-c", STEP, name]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert 0 < found["loss"] < 20 and 0 < found["norm"] < 1e4
    assert not found["whole"]
