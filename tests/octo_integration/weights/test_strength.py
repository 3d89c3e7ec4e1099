"""The strengths of an imported `mini` are the formula's, and the authors' own, tensor by tensor."""

import json
from pathlib import Path

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import maps_optax as mx
from octo_integration.model.named import model_shapes
from octo_integration.weights.convert import plan
from octo_integration.weights.hf import Checkpoint, Tensor
from octo_integration.weights.names import FORMATS, PRISMATIC

OFFICIAL = Path(__file__).parents[4] / "shared/reference/official_lambda/lambda_minivla_official.json"
LAYOUTS = {"dinov2": "prismatic", "siglip": "timm", "bridge": "prismatic", "language": "transformers"}


def strengths(variant):
    tree = mx.strengths(mx.presets.vla(variant), model_shapes("mini"), 1.0)
    return {path: np.asarray(value) for path, value in flatten_dict(tree, sep="/").items() if value is not None}


def test_the_formula_over_76_layers():
    found = strengths("paper")
    blocks = [found[f"{m}/blocks/attn/query/kernel"] for m in ("dinov2", "siglip")]
    bridge = found["bridge/fc1/kernel"]
    stack = np.concatenate([*blocks, bridge[None], found["language/blocks/attn/query/kernel"]])
    assert len(stack) == 24 + 27 + 1 + 24
    np.testing.assert_allclose(stack, 1 - np.arange(76) / 75, atol=1e-12)
    assert found["dinov2/pos_embed"] == 1 and found["language/norm/scale"] == 0


@pytest.mark.skipif(not OFFICIAL.is_file(), reason=f"no {OFFICIAL}")
def test_the_authors_strength_of_every_tensor():
    official = {row["name"]: row for row in json.loads(OFFICIAL.read_text())["parameters"]}
    found, seen = strengths("released"), set()
    shapes = flatten_dict(model_shapes("mini"), sep="/")
    for module, prefix in PRISMATIC.items():
        layout = next(f for f in FORMATS[module] if f.name == LAYOUTS[module])
        for rule in layout.rules:
            path = f"{module}/{rule.leaf}"
            if path not in shapes:
                continue
            stacked = "{i}" in rule.source
            for i in range(shapes[path].shape[0] if stacked else 1):
                row = official[prefix + rule.source.format(i=i)]
                seen.add(row["name"])
                wanted = 0.0 if row["excluded"] else row["lambda_over_lambda_max"]
                value = found.get(path, np.zeros(()))
                assert (value[i] if stacked and value.ndim else value) == pytest.approx(wanted, abs=1e-7), row["name"]
    unread = {name for name in official if name not in seen and not name.startswith(("action_head", "proprio"))}
    assert all("attn_pool" in name for name in unread), unread


@pytest.mark.skipif(not OFFICIAL.is_file(), reason=f"no {OFFICIAL}")
@pytest.mark.parametrize(("model", "table"), [("mini", "minivla"), ("openvla", "openvla7b")])
def test_the_models_are_of_the_sizes_of_the_released_checkpoints(model, table):
    rows = json.loads((OFFICIAL.parent / f"lambda_{table}_official.json").read_text())["parameters"]
    tensors = {row["name"]: Tensor(OFFICIAL, tuple(row["shape"]), "F32") for row in rows}
    shapes = flatten_dict(model_shapes(model), sep="/")
    for module, prefix in PRISMATIC.items():
        mine = {path.partition("/")[2]: leaf.shape for path, leaf in shapes.items() if path.startswith(f"{module}/")}
        assert plan(module, mine, Checkpoint(OFFICIAL.parent, tensors, {}), prefix).rules.keys() == mine.keys()
