"""Every action head on the real Bridge episodes: it trains, and its checkpoint acts."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from octo_integration import data
from octo_integration.common import files
from octo_integration.config import FinetuneConfig, MapsConfig, MeshConfig, OptimizerConfig, to_dict
from octo_integration.data import DataConfig
from octo_integration.model.heads import HEADS
from octo_integration.model.heads.diffusion import DiffusionConfig
from octo_integration.model.heads.regression import L1Config
from octo_integration.model.heads.tokens import TokensConfig
from octo_integration.model.named import random_params
from octo_integration.model.sizes import CONFIGS
from octo_integration.policy.policy import load_policy
from octo_integration.state import checkpoint, sharding
from octo_integration.state.methods import holding
from octo_integration.state.optimizer import make_optimizer
from octo_integration.state.setup import build
from octo_integration.state.train_state import abstract_state, init_state
from octo_integration.train.step import make_loss, make_train_step
from tests.octo_integration import micro_vla

STEPS, BATCHES = 40, 4
WINDOW, SIZE = 2, 16
# One tower and few leaves: compiling is what takes the time.
MODEL = dataclasses.replace(
    micro_vla.CONFIG,
    dinov2=None,
    siglip=dataclasses.replace(micro_vla.CONFIG.siglip, depth=1),
    language=dataclasses.replace(micro_vla.CONFIG.language, depth=1),
    scan=False,
)
SMALL = {"l1": L1Config(hidden=64), "diffusion": DiffusionConfig(hidden=64, blocks=1), "tokens": TokensConfig(bins=32)}


@pytest.fixture(scope="module")
def sample(bridge_path):
    """The data configuration, its statistics and its first batches."""
    config = DataConfig(
        path=bridge_path,
        standardize="bridge",
        split="train[:4]",
        batch_size=8,
        window=WINDOW,
        image_size=SIZE,
        chunk=3,
        augment=False,
        shuffle_buffer=64,
    )
    statistics = data.compute_statistics(config)
    reader = data.train_batches(config, statistics, seed=0)
    return config, statistics, [next(reader) for _ in range(BATCHES)]


def train(config: FinetuneConfig, statistics: data.Statistics, batches: list[dict]) -> list[dict]:
    """The metrics of every step; leaves the run directory that `load_policy` reads."""
    built = build(config, statistics)
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    params = jax.jit(lambda: random_params(built.model, config.data.window, jax.random.key(config.seed)))()
    tx = make_optimizer(config, holding(config, built.layers, params))
    like = abstract_state(params, tx, mesh, config.mesh.min_size)
    step = make_train_step(make_loss(built.model), tx, like, mesh, config.seed)
    state, metrics = init_state(params, tx, like), []
    for i in range(STEPS):
        state, logged = step(state, sharding.put_local(built.device_form(batches[i % BATCHES]), mesh))
        metrics.append(logged)
    out = Path(config.out)
    manager = checkpoint.open_checkpoints(out / "checkpoints", keep=1)
    checkpoint.save(manager, STEPS, state, anchored=False)
    checkpoint.finish(manager)
    files.write_json(out / "config.json", to_dict(config))
    (out / "statistics.json").write_text(statistics.to_json())
    return jax.device_get(metrics)


def moment(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    return {"image_primary": image, "proprio": rng.normal(size=7).astype(np.float32)}


@pytest.mark.parametrize("head", HEADS)
def test_a_head_trains_and_acts(head, sample, tmp_path, monkeypatch):
    monkeypatch.setitem(CONFIGS, "micro", dataclasses.replace(MODEL, head=SMALL[head]))
    config, *content = sample
    run = FinetuneConfig(
        out=str(tmp_path),
        model="micro",
        weights=None,
        head=head,
        data=config,
        optimizer=OptimizerConfig(lr=1e-2, warmup=2, steps=STEPS),
        maps=MapsConfig(method="adam"),
    )
    metrics = train(run, *content)
    logged = {"l1": set(), "diffusion": {"denoised_l1"}, "tokens": {"accuracy"}}[head]
    assert set(metrics[0]) == {"loss", "grad_norm", "bad_leaf", *logged}
    losses = [m["loss"] for m in metrics]
    assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:8])

    policy = load_policy(tmp_path)
    first = policy(moment(0), "pick up the pot")
    second = policy(moment(1), "pick up the pot")
    assert first.shape == (3, 7) and np.isfinite(first).all() and np.isfinite(second).all()
    policy.reset()
    np.testing.assert_array_equal(policy(moment(0), "pick up the pot"), first)
