"""Every action head on the real Bridge episodes: it trains, and its checkpoint acts."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from octo_integration.config import FinetuneConfig, MapsConfig, OptimizerConfig
from octo_integration.data import DataConfig
from octo_integration.model.config import HeadConfig
from octo_integration.model.heads import HEADS
from octo_integration.model.sizes import CONFIGS
from octo_integration.train import loop
from octo_integration.train.policy import load_policy
from tests.octo_integration.train import micro_vla

STEPS = 40
WINDOW, SIZE = 2, 16
# One tower and few leaves: compiling is what takes the time.
MODEL = dataclasses.replace(
    micro_vla.CONFIG,
    dinov2=None,
    siglip=dataclasses.replace(micro_vla.CONFIG.siglip, depth=1),
    language=dataclasses.replace(micro_vla.CONFIG.language, depth=1),
    head=HeadConfig(hidden=64, blocks=1, bins=32),
)


def config(head: str, path: str, out: Path) -> FinetuneConfig:
    data = DataConfig(
        path=path, standardize="bridge", split="train[:4]", batch_size=8, window=WINDOW, image_size=SIZE, chunk=3
    )
    return FinetuneConfig(
        out=str(out),
        model="micro",
        weights=None,
        head=head,
        data=data,
        optimizer=OptimizerConfig(lr=1e-2, warmup=2, steps=STEPS),
        maps=MapsConfig(method="adam"),
        eval_splits=(),
        log_every=10,
        save_every=STEPS,
    )


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def moment(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    return {"image_primary": image, "proprio": rng.normal(size=7).astype(np.float32)}


@pytest.mark.parametrize("head", HEADS)
def test_a_head_trains_and_acts(head, bridge_path, tmp_path, monkeypatch):
    monkeypatch.setitem(CONFIGS, "micro", MODEL)
    loop.finetune(config(head, bridge_path, tmp_path))
    first, *_, last = [line["loss"] for line in lines(tmp_path) if "loss" in line]
    assert last < 0.9 * first

    policy = load_policy(tmp_path)
    first = policy(moment(0), "pick up the pot")
    second = policy(moment(1), "pick up the pot")
    assert first.shape == (3, 7) and np.isfinite(first).all() and np.isfinite(second).all()
    policy.reset()
    np.testing.assert_array_equal(policy(moment(0), "pick up the pot"), first)
