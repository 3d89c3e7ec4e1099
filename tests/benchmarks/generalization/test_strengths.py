import dataclasses

import jax
import numpy as np
import pytest

import maps_optax as mx
from benchmarks.generalization.methods import PLAN, Point
from benchmarks.generalization.strengths import ORDERS, adapter_tree, mean_strength, positions, rate_tree, strength_tree
from benchmarks.generalization.train import Program, knobs_of, model_config
from benchmarks.generalization.worker import initial

LINEAR = Point("linear", "", lambda_max=2.0)


@pytest.fixture(scope="module")
def shapes():
    return jax.eval_shape(lambda: initial(Program(), None, 0))


def flat(tree):
    return {
        "/".join(key.key for key in path): value
        for path, value in jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is None)[0]
    }


def test_the_papers_order_is_the_presets(shapes):
    wanted = flat(mx.strengths(mx.presets.vla(), shapes, 2.0))
    for path, value in flat(strength_tree(LINEAR, shapes)).items():
        if value is None:
            assert wanted[path] == 0 and path.split("/")[0] in ("readout", "action_head", "proprio_projector")
        else:
            np.testing.assert_allclose(value, wanted[path], rtol=1e-6)


def test_other_orders_move_what_their_name_says(shapes):
    def k(order, path):
        return flat(positions(order, shapes))[path]

    first, last = "dinov2/blocks/mlp/fc1/kernel", "language/blocks/mlp/up/kernel"
    np.testing.assert_array_equal(k("paper", first), [1, 2, 3, 4])
    np.testing.assert_array_equal(k("reversed", first), [13, 12, 11, 10])
    np.testing.assert_array_equal(k("swapped", first), [5, 6, 7, 8])
    np.testing.assert_array_equal(k("parallel", first), k("parallel", "siglip/blocks/mlp/fc1/kernel"))
    np.testing.assert_array_equal(k("parallel", last), [6, 7, 8, 9])
    np.testing.assert_array_equal(k("modules", first), [1, 1, 1, 1])
    np.testing.assert_array_equal(k("modules", last), [4, 4, 4, 4])
    for order in ORDERS:
        used = {
            int(i) for value in flat(positions(order, shapes)).values() if value is not None for i in np.ravel(value)
        }
        assert used == set(range(1, len(used) + 1))
    shuffled = [int(i) for i in k("shuffled", first)]
    assert shuffled != [1, 2, 3, 4] and shuffled == [int(i) for i in k("shuffled", first)]


def test_the_mean_counts_parameters():
    tree = {"a": np.array([1.0, 3.0]), "b": np.array(1.0), "free": None}
    params = {"a": np.zeros((2, 5)), "b": np.zeros(10), "free": np.zeros(1000)}
    assert mean_strength(tree, params) == pytest.approx((2 * 10 + 10) / 20)


def test_adapters_get_the_strength_of_their_kernel():
    program = Program(lora=4)
    assert model_config(program).lora.rank == 4
    shapes = jax.eval_shape(lambda: initial(program, None, 0))
    found = flat(adapter_tree(dataclasses.replace(LINEAR, lora=4), shapes))
    wanted = flat(mx.strengths(mx.presets.vla(), shapes, 2.0))
    held = {path: value for path, value in found.items() if value is not None}
    assert held and all(path.endswith("lora_a") for path in held)
    for path, value in held.items():
        np.testing.assert_allclose(value, wanted[path.replace("lora_a", "kernel")], rtol=1e-6)


def test_all_plain_points_are_one_program(shapes):
    plain = [p for p in PLAN if not p.lora]
    structures = {jax.tree.structure(knobs_of(p, shapes, 1e-3, 400)) for p in plain}
    assert len(plain) > 40 and len(structures) == 1


def test_names_of_points_are_unique():
    names = [p.name for p in PLAN] + [f"{d.method}/{d.x}" for p in PLAN for d in p.derived]
    assert len(set(names)) == len(names)


def test_what_is_frozen_and_what_moves(shapes):
    moving = flat(knobs_of(Point("x", "", frozen=("dinov2",)), shapes, 1e-3, 10).moving)
    assert {path.split("/")[0] for path, value in moving.items() if not value} == {"dinov2"}
    program = Program(lora=4)
    lora = jax.eval_shape(lambda: initial(program, None, 0))
    moving = flat(knobs_of(Point("x", "", lora=4), lora, 1e-3, 10).moving)
    assert moving["dinov2/blocks/mlp/fc1/lora_a"] and moving["action_head/out/kernel"]
    assert not moving["dinov2/blocks/mlp/fc1/kernel"] and not moving["language/norm/scale"]


def test_lambda_acts_on_the_held_modules_alone(shapes):
    point = dataclasses.replace(LINEAR, schedule="constant", held=("siglip",))
    found = {path: value for path, value in flat(strength_tree(point, shapes)).items() if value is not None}
    assert {path.split("/")[0] for path, value in found.items() if np.any(value)} == {"siglip"}
    assert all(np.all(value == 2.0) for path, value in found.items() if path.startswith("siglip/"))
    everywhere = flat(strength_tree(dataclasses.replace(point, held=()), shapes))
    assert {path for path, value in everywhere.items() if value is not None} == set(found)  # trees of one structure


def test_the_rate_falls_towards_the_first_layer(shapes):
    places, leaves = flat(positions("paper", shapes)), flat(shapes)
    last = max(int(np.max(k)) for k in places.values() if k is not None)
    for path, rate in flat(rate_tree(Point("x", "", backbone=0.3, layer_decay=0.5), shapes)).items():
        if places[path] is None:
            assert rate == 1
        else:
            wanted = 0.3 * 0.5 ** (last - np.asarray(places[path], float))
            np.testing.assert_allclose(np.ravel(rate), np.ravel(wanted), rtol=1e-6)
            np.broadcast_shapes(np.shape(rate), leaves[path].shape)
    assert {float(np.ravel(r)[0]) for r in flat(rate_tree(LINEAR, shapes)).values()} == {1.0}
