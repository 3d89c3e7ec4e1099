"""The training step: loss, what the optimizer makes of it, donation, accumulation, precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import maps_optax as mx
from octo_integration.config import MapsConfig, OptimizerConfig
from octo_integration.state.train_state import TrainState
from tests.octo_integration import micro


def start(optimizer: OptimizerConfig, maps: MapsConfig, dtype: str = "float32"):
    machine = micro.machine(optimizer, maps, dtype=dtype)
    return machine.start(micro.params()), machine.step


def train(optimizer: OptimizerConfig, maps: MapsConfig, steps: int, dtype: str = "float32"):
    state, step = start(optimizer, maps, dtype)
    losses = []
    for i in range(steps):
        state, metrics = step(state, micro.batch(i))
        losses.append(float(metrics["loss"]))
    return state, losses


def distance(params, module: str) -> float:
    theta0 = micro.params()[module]
    gaps = jax.tree.map(lambda a, b: float(((a - b) ** 2).sum()), params[module], theta0)
    return sum(jax.tree.leaves(gaps)) ** 0.5


FAST = OptimizerConfig(lr=1e-2, warmup=2, steps=60, weight_decay=0.0)
ADAM = MapsConfig(method="adam")


def test_what_the_loss_draws_follows_from_seed_and_step():
    state, step = start(FAST, ADAM)
    for i in range(3):
        state, metrics = step(state, micro.batch(i))
        key = jax.random.fold_in(jax.random.key(micro.SEED), i)
        assert metrics["drawn"] == jax.random.uniform(key)


@pytest.mark.parametrize("maps", [ADAM, MapsConfig(), MapsConfig(method="l2_sp", lambda_max=0.01)])
def test_it_learns(maps):
    losses = train(FAST, maps, 60)[1]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


def test_maps_holds_the_first_layers_and_leaves_the_head_alone():
    adam = train(FAST, ADAM, 40)[0].params
    maps = train(FAST, MapsConfig(), 40)[0].params
    assert distance(maps, "vision") < 0.8 * distance(adam, "vision")
    assert distance(maps, "head") > 0.8 * distance(adam, "head")


def test_lambda_zero_is_plain_adam_bit_for_bit():
    adam = train(FAST, ADAM, 10)[0].params
    maps = train(FAST, MapsConfig(method="maps", lambda_max=0.0), 10)[0].params
    jax.tree.map(np.testing.assert_array_equal, maps, adam)


@pytest.mark.parametrize("method", ["adam", "maps", "l2_sp"])
def test_the_state_is_donated_and_theta0_survives(method):
    state, step = start(FAST, MapsConfig(method=method))
    following, _ = step(state, micro.batch(0))
    assert all(x.is_deleted() for x in jax.tree.leaves(state.params))
    following, _ = step(following, micro.batch(1))  # an anchor aliasing the params would fail here
    assert int(following.step) == 2


def test_accumulated_batches_equal_one_large_batch():
    whole = micro.batch(0, size=16)
    # Every output has an odd number of targets: or signs of an L1 gradient sum to 0, and Adam amplifies.
    whole["action_pad_mask"][:] = True
    whole["action_pad_mask"][0, 0] = whole["action_pad_mask"][8, 1] = False
    halves = [jax.tree.map(lambda x, s=s: x[s], whole) for s in (slice(0, 8), slice(8, 16))]
    maps = MapsConfig()
    one, one_step = start(OptimizerConfig(lr=1e-2, warmup=0, steps=60), maps)
    two, two_step = start(OptimizerConfig(lr=1e-2, warmup=0, steps=60, accumulate=2), maps)
    for _ in range(3):
        one, _ = one_step(one, whole)
        for half in halves:
            two, _ = two_step(two, half)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), one.params, two.params)
    assert mx.metrics(two.opt_state).keys() == mx.metrics(one.opt_state).keys()


def test_bfloat16_computes_in_bfloat16_and_keeps_float32():
    state, losses = train(FAST, ADAM, 3, "bfloat16")
    exact = train(FAST, ADAM, 3)[1]
    assert isinstance(state, TrainState)
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    assert losses != exact
    np.testing.assert_allclose(losses, exact, rtol=0.02)
