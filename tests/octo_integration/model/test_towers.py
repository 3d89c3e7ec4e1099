"""Any subset of the towers, and Octo's own structure: stem, T5, two cameras, goal, diffusion."""

import copy
import dataclasses

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import maps_optax as mx
from octo_integration.model.config import StemConfig, T5Config
from octo_integration.model.heads.diffusion import DiffusionConfig
from octo_integration.model.vla import VLA
from tests.octo_integration.model.small import SMALL, drawn, inputs, run

TOWERS = {
    "dinov2": SMALL.dinov2,
    "siglip": SMALL.siglip,
    "clip": dataclasses.replace(SMALL.siglip, cls_token=True, pre_norm=True, gelu="quick"),
    "stem": StemConfig(channels=(4, 4, 8), width=16),
}
NONE = dict.fromkeys(TOWERS)
OCTO = dataclasses.replace(
    SMALL,
    **{**NONE, "stem": TOWERS["stem"]},
    t5=T5Config(vocabulary=259, width=16, depth=1, heads=2, mlp=16),
    language=dataclasses.replace(SMALL.language, vocabulary=0, depth=1),
    cameras=("primary", "wrist"),
    goal=True,
    head=DiffusionConfig(hidden=16, blocks=1, steps=4),
)


def shapes(config):
    return jax.eval_shape(VLA(config).init, jax.random.key(0), *inputs(config))["params"]


@pytest.mark.parametrize("names", [("clip",), ("stem",), ("dinov2",), ("siglip", "clip", "stem"), tuple(TOWERS)])
def test_a_model_has_the_towers_that_its_configuration_names(names):
    config = dataclasses.replace(SMALL, **{**NONE, **{name: TOWERS[name] for name in names}})
    found = shapes(config)
    assert set(found) & set(TOWERS) == set(names)
    width = sum(TOWERS[name].width for name in names)
    assert found["bridge"]["fc1"]["kernel"].shape[0] == width
    assert ("fc3" in found["bridge"]) == (len(names) > 1)
    strengths = mx.strengths(mx.presets.vla(), found, 1.0, "constant")
    held = {module for module, part in strengths.items() if any(np.any(x) for x in jax.tree.leaves(part))}
    assert held == {*names, "bridge", "language"}


def test_the_tree_of_octos_structure():
    found = shapes(OCTO)
    fresh = {"readout", "action_head", "proprio_projector", "task_projector", "image_source"}
    assert set(found) == {"stem", "t5", "bridge", "language", *fresh}
    assert found["task_projector"]["kernel"].shape == (16, OCTO.language.width)
    assert "embed" not in found["language"]


def test_octos_structure_learns_everywhere():
    observation, task = inputs(OCTO)
    action = np.random.default_rng(0).normal(size=(2, 1 + OCTO.chunk, OCTO.action_dim)).astype(np.float32)
    batch = {"observation": observation, "task": task, "action": action, "action_pad_mask": action < 9}

    def loss(values):
        return VLA(OCTO).apply({"params": values}, batch, jax.random.key(0), method="loss")[0]

    gradient = flatten_dict(jax.jit(jax.grad(loss))(drawn(OCTO)), sep="/")
    # A group norm over one channel takes away what a bias adds to it.
    silent = {f"stem/conv_{i}/bias" for i in range(3)}
    assert {name for name, g in gradient.items() if not np.abs(g).max() > 1e-7} <= silent <= set(gradient)


def test_padding_and_a_missing_instruction_change_nothing_through_t5():
    observation, task = inputs(OCTO)
    other = copy.deepcopy(task)
    other["tokens"][~other["mask"]] = 7
    before = run(observation, task, OCTO, drawn(OCTO))
    assert run(observation, other, OCTO, drawn(OCTO)).tobytes() == before.tobytes()
    gone = [{**t, "pad_mask_dict": {"instruction": np.zeros(2, bool)}} for t in (task, inputs(OCTO, text="drop")[1])]
    a, b = (run(observation, t, OCTO, drawn(OCTO)) for t in gone)
    assert a.tobytes() == b.tobytes() and np.abs(a - before).max() > 1e-4
