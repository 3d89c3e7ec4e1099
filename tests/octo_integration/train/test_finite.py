"""Losses and gradients that are not finite: the run stops, or such batches change nothing."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from octo_integration.config import MapsConfig, MeshConfig, OptimizerConfig
from octo_integration.state import checkpoint, sharding
from octo_integration.state.optimizer import batches_applied
from octo_integration.state.train_state import abstract_state, init_state
from octo_integration.train import finite
from octo_integration.train.step import make_loss, make_train_step
from tests.octo_integration import micro

METHODS = ("maps", "adam", "l2_sp")


@functools.cache
def machine(method="maps", accumulate=1, nan_policy="skip", width=16):
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    optimizer = OptimizerConfig(lr=1e-2, warmup=2, steps=60, accumulate=accumulate)
    tx = micro.optimizer_of(optimizer, MapsConfig(method=method), width)
    like = abstract_state(micro.params(width), tx, mesh, 64)
    step = make_train_step(make_loss(micro.Micro(width)), tx, like, mesh, micro.SEED, nan_policy)
    return tx, like, step


def begin(**options):
    tx, like, step = machine(**options)
    return init_state(micro.params(options.get("width", 16)), tx, like), step


def bad(number: int, value=np.nan):
    batch = micro.batch(number)
    batch["action"][1, 0, 0] = value
    return batch


def to_host(tree):
    return jax.tree.map(np.array, tree)


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_a_skipped_batch_changes_nothing_but_the_count_of_batches(method, accumulate):
    state, step = begin(method=method, accumulate=accumulate)
    for i in range(3):  # with 2 batches per step, the last one is half-way through a step
        state, metrics = step(state, micro.batch(i))
        assert not metrics[finite.SKIPPED] and metrics[finite.BAD_LEAF] == -1
    before = to_host(state)
    for value in (np.nan, np.inf):
        state, metrics = step(state, bad(3, value))
        assert metrics[finite.SKIPPED] and not np.isfinite(metrics["loss"])
    assert_same(to_host(state._replace(step=before.step)), before)
    assert int(state.step) == 5 and batches_applied(state.opt_state, accumulate) == 3
    after, metrics = step(state, micro.batch(5))
    assert not metrics[finite.SKIPPED]
    if accumulate == 1:
        assert any((a != b).any() for a, b in zip(jax.tree.leaves(after.params), jax.tree.leaves(before.params)))


def test_training_goes_on_as_if_the_skipped_batch_had_not_been_there():
    (one, step), (two, _) = begin(), begin()
    for batch in (micro.batch(0), bad(9), micro.batch(1), micro.batch(2)):
        one, _ = step(one, batch)
    for i in range(3):
        two, _ = step(two, micro.batch(i))
    assert_same(to_host(one._replace(step=two.step)), to_host(two))


def test_skipping_leaves_good_steps_as_they_are():
    (one, skip), (two, stop) = begin(), begin(nan_policy="stop")
    for i in range(4):
        one, with_count = skip(one, micro.batch(i))
        two, metrics = stop(two, micro.batch(i))
        assert with_count.keys() - metrics.keys() == {finite.SKIPPED}
    # Not to the bit: the compiler may round a fused update otherwise.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), one.params, two.params)


def test_the_state_is_donated_when_batches_are_skipped_too():
    state, step = begin()
    step(state, bad(0))
    assert all(x.is_deleted() for x in jax.tree.leaves(state.params))


@pytest.fixture
def optimised():
    """Compiled as the command compiles: what a quick compiler leaves in memory is not what a user pays."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def test_skipping_costs_at_most_one_copy_of_the_parameters(optimised):
    width = 256
    size = sum(x.nbytes for x in jax.tree.leaves(micro.params(width)))
    needed = {}
    for policy in ("stop", "skip"):
        _, like, step = machine(nan_policy=policy, width=width)
        analysis = step.lower(like, micro.batch(0)).compile().memory_analysis()
        needed[policy] = analysis.temp_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    # That of the updates: MAPS measures them before it applies them, and the moments that they came from are not kept.
    assert needed["skip"] - needed["stop"] < 1.05 * size, (needed, size)


def test_the_first_gradient_that_is_not_finite_is_found():
    grads = {"a": jnp.ones((2, 3)), "b": jnp.ones(4), "c": jnp.ones(())}
    assert finite.bad_leaf(grads) == -1
    assert finite.bad_leaf({**grads, "b": jnp.array([1.0, jnp.nan, 1.0, 1.0])}) == 1
    assert finite.bad_leaf({**grads, "c": -jnp.inf, "b": grads["b"] * jnp.inf}) == 1
    assert checkpoint.paths(grads) == ["a", "b", "c"]


def metric(loss=1.0, grad_norm=1.0, leaf=-1, skipped=None):
    values = {"grad_norm": np.float32(grad_norm), "loss": np.float32(loss), finite.BAD_LEAF: np.int32(leaf)}
    return values if skipped is None else {**values, finite.SKIPPED: np.bool_(skipped)}


LEAVES = ["head/bias", "head/kernel"]
GOOD, SKIPPED = metric(skipped=False), metric(loss=np.nan, leaf=1, skipped=True)


def test_without_skipping_the_first_bad_batch_is_a_problem():
    metrics = [metric(), metric(loss=np.inf, grad_norm=np.nan, leaf=1), metric(loss=np.nan)]
    assert finite.check(metrics, 0, 10, LEAVES) == (
        0,
        (1, "loss is inf", "the first gradient that is not finite is that of head/kernel; "),
    )
    assert finite.check([metric(grad_norm=np.inf)], 0, 10, LEAVES)[1] == (0, "grad_norm is inf", "")
    assert finite.check([metric()] * 3, 0, 10, LEAVES) == (0, None)


def test_too_many_skips_in_a_row_are_a_problem_also_across_checks():
    assert finite.check([SKIPPED, SKIPPED, GOOD, SKIPPED, SKIPPED], 0, 3, LEAVES) == (2, None)
    row, problem = finite.check([SKIPPED, GOOD], 2, 3, LEAVES)
    assert row == 3 and problem.batch == 0 and "in 3 batches in a row, which were skipped" in problem.detail
    assert finite.check([GOOD, SKIPPED], 2, 3, LEAVES) == (1, None)


def test_another_metric_that_is_not_finite_is_a_problem_though_nothing_was_skipped():
    assert finite.check([{**GOOD, "accuracy": np.float32(np.nan)}], 0, 3, LEAVES)[1].value == "accuracy is nan"


def test_means_leave_skipped_batches_out():
    assert finite.mean([metric(loss=1.0), metric(loss=3.0)]) == {"grad_norm": 1.0, "loss": 2.0}
    assert finite.mean([GOOD, SKIPPED, metric(loss=3.0, skipped=False)])["loss"] == 2.0
    assert finite.mean([SKIPPED]) == {}
    json.dumps(finite.mean([GOOD]), allow_nan=False)
