"""Several cameras, a goal image, history: what counts, and that what is missing changes nothing, to the bit."""

import copy
import dataclasses
import functools

import jax
import numpy as np
import pytest

from octo_integration.model.sequence import readout_steps
from octo_integration.model.vla import VLA
from tests.octo_integration.model.small import SMALL, drawn, inputs, run

CONFIG = dataclasses.replace(
    SMALL,
    dinov2=None,
    siglip=dataclasses.replace(SMALL.siglip, depth=1),
    cameras=("primary", "wrist"),
    goal=True,
)
OBSERVATION_MASKS = ("image_primary", "image_wrist", "proprio")


def batch(seed=0):
    """Observation and task with every mask written out, all True."""
    observation, task = inputs(CONFIG, seed=seed)
    rows, window = observation["timestep_pad_mask"].shape
    observation["pad_mask_dict"] = {name: np.ones((rows, window), bool) for name in OBSERVATION_MASKS}
    task["pad_mask_dict"] = {name: np.ones(rows, bool) for name in ("image_primary", "instruction")}
    return observation, task


def act(both, config=CONFIG):
    return run(*both, config, drawn(config))


def hide(both, part, name, rows=slice(None)):
    both[part]["pad_mask_dict"][name][rows] = False


def test_masks_that_are_left_out_mean_that_all_is_there():
    assert act(inputs(CONFIG)).tobytes() == act(batch()).tobytes()


@pytest.mark.parametrize("name", ["image_primary", "image_wrist", "proprio"])
def test_a_missing_modality_of_the_observation_changes_nothing(name):
    hidden = batch()
    hide(hidden, 0, name, (slice(None), 0))
    before = act(hidden)
    changed = copy.deepcopy(hidden)
    changed[0][name][:, 0] = inputs(CONFIG, seed=9)[0][name][:, 0]
    assert act(changed).tobytes() == before.tobytes()
    changed[0][name][:, 1] = inputs(CONFIG, seed=9)[0][name][:, 1]  # the same where it is there
    assert np.abs(act(changed) - before).max() > 1e-4
    assert np.abs(act(batch()) - before).max() > 1e-4


@pytest.mark.parametrize("name, key", [("image_primary", "image_primary"), ("instruction", "tokens")])
def test_a_missing_part_of_the_task_changes_nothing(name, key):
    hidden = batch()
    hide(hidden, 1, name)
    before = act(hidden)
    changed, there = copy.deepcopy(hidden), batch()
    other = inputs(CONFIG, seed=9, text="drop all")[1][key]
    changed[1][key], there[1][key] = other, other
    assert act(changed).tobytes() == before.tobytes()
    assert np.abs(act(there) - act(batch())).max() > 1e-4


def test_a_padded_timestep_changes_nothing():
    padded, changed, other = batch(), batch(), batch(seed=9)
    for one in (padded, changed):
        one[0]["timestep_pad_mask"][:, 0] = False
    for name in OBSERVATION_MASKS:
        changed[0][name][:, 0] = other[0][name][:, 0]
    assert act(changed).tobytes() == act(padded).tobytes()


def test_a_sample_without_anything_gives_finite_actions_and_leaves_the_others_alone():
    empty = batch()
    for name in OBSERVATION_MASKS:
        hide(empty, 0, name, 0)
    for name in ("image_primary", "instruction"):
        hide(empty, 1, name, 0)
    got, before = act(empty), act(batch())
    assert np.isfinite(got).all()
    np.testing.assert_array_equal(got[1], before[1])
    assert np.abs(got[0] - before[0]).max() > 1e-4


def test_cameras_and_goal_are_told_apart_though_their_images_are_the_same():
    same = batch()
    same[0]["image_wrist"] = same[0]["image_primary"]
    swapped = copy.deepcopy(same)
    hide(same, 0, "image_wrist")
    hide(swapped, 0, "image_primary")
    assert np.abs(act(same) - act(swapped)).max() > 1e-4


@pytest.mark.parametrize(("cameras", "goal", "sources"), [(1, False, None), (2, False, 2), (1, True, 2), (2, True, 3)])
def test_images_of_one_source_only_need_no_vector_of_their_own(cameras, goal, sources):
    config = dataclasses.replace(SMALL, cameras=CONFIG.cameras[:cameras], goal=goal)
    shapes = jax.eval_shape(VLA(config).init, jax.random.key(0), *inputs(config))["params"]
    found = shapes.get("image_source")
    assert (found and found["embedding"].shape) == (sources and (sources, config.language.width))


@functools.cache
def decoded(config, shift):
    """What the decoder makes of every token, readouts shifted."""
    values = dict(drawn(CONFIG))
    values["readout"] = jax.tree.map(lambda x: x + shift, values["readout"])
    decode = jax.jit(lambda v, o, t: VLA(config).apply({"params": v}, o, t, method="decode"))
    return np.asarray(decode(values, *batch()))


@pytest.mark.parametrize("kind", ["blockwise", "causal"])
def test_readouts_change_nothing_but_readouts(kind):
    config = dataclasses.replace(CONFIG, attention=kind)
    before, after = decoded(config, 0.0), decoded(config, 1.0)
    readouts = len(readout_steps(config, window=2)) * config.chunk
    assert after[:, :-readouts].tobytes() == before[:, :-readouts].tobytes()
    assert np.abs(after - before)[:, -readouts:].max(axis=(0, 2)).min() > 1e-3


def test_the_kinds_of_attention_differ():
    kinds = [decoded(dataclasses.replace(CONFIG, attention=kind), 0.0) for kind in ("blockwise", "causal", "full")]
    for i, one in enumerate(kinds):
        for other in kinds[:i]:
            # The readouts of the last timestep, which all kinds have.
            assert np.abs(one[:, -CONFIG.chunk :] - other[:, -CONFIG.chunk :]).max() > 1e-3


@pytest.mark.parametrize(
    "part, name", [("observation", "image_wrist"), ("observation", "proprio"), ("task", "image_primary")]
)
def test_a_missing_input_is_named(part, name):
    both = dict(zip(("observation", "task"), batch(), strict=True))
    del both[part][name]
    with pytest.raises(ValueError, match=f"model: {part}/{name} is missing; give it, or zeros and False"):
        VLA(CONFIG).apply({"params": drawn(CONFIG)}, **both)
