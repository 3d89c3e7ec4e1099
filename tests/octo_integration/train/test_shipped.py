"""What the repository ships works together: data, weights, and the job of `maps-vla demo`."""

import json
from pathlib import Path

import numpy as np

import octo_integration
from octo_integration.cli.demo import Options, run_config
from octo_integration.train.loop import finetune

ASSETS = Path(octo_integration.__file__).parent / "assets"


def test_the_shipped_files_are_small() -> None:
    for name in ("metaworld_tiny", "tiny.safetensors"):
        files = [p for p in [ASSETS / name, *(ASSETS / name).rglob("*")] if p.is_file()]
        assert 0 < sum(p.stat().st_size for p in files) <= 8e6


def test_the_weights_beat_random_ones() -> None:
    """In all but places read from the SigLIP tower, which learns captions."""
    probes = json.loads((ASSETS / "tiny.json").read_text())["probes"]
    trained, random = probes["pretrained"], probes["random"]
    assert trained["retrieval"] > 20 * random["retrieval"]
    for kind in ("caption", "hand", "find", "move"):
        assert trained[f"perplexity_{kind}"] < 0.02 * random[f"perplexity_{kind}"]
        assert trained[f"perplexity_{kind}_other_image"] > 1.5 * trained[f"perplexity_{kind}"]  # it looks
    assert trained["head_hand_cm"] < 0.25 * trained["mean_hand_cm"]
    assert trained["head_object_cm"] < 0.6 * trained["mean_object_cm"]
    assert trained["dinov2_hand_cm"] < 0.7 * random["dinov2_hand_cm"]
    assert trained["dinov2_object_cm"] < 0.9 * random["dinov2_object_cm"]


def test_two_steps_of_the_demo(tmp_path: Path) -> None:
    config = run_config(Options(out=str(tmp_path), steps=2), "maps", seed=1)
    outcome = finetune(config)
    assert outcome.step == 2
    assert set(outcome.errors) == {"heldout", *(f"heldout_{s}" for s in ("texture", "light", "camera", "color"))}
    assert all(np.isfinite(e.l1) and e.episodes == 12 for e in outcome.errors.values())
    rows = json.loads((tmp_path / "maps-1" / "drift.json").read_text())
    modules = {row["module"] for row in (rows["tensors"] if isinstance(rows, dict) else rows)}
    assert modules == {"dinov2", "siglip", "bridge", "language"}
