"""The price of holding: what it is, where λ goes by it, and that a run follows it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.generalization import prices
from benchmarks.generalization.methods import Point
from benchmarks.generalization.train import Program
from benchmarks.generalization.worker import initial

# Three parts: a tensor, one layer of a stack, and the other; what is fresh belongs to none.
PARTS = {"a": 1, "b": np.array([2, 3]), "fresh": None}
START = {"a": jnp.zeros(2), "b": jnp.zeros((2, 3)), "fresh": jnp.ones(1)}
HERE = {"a": jnp.ones(2), "b": jnp.array([[2.0] * 3, [4.0] * 3]), "fresh": jnp.full(1, 5.0)}


def loss(params):
    return 10 + params["a"].sum() + (params["b"].sum(1) * jnp.array([-1.0, 1.0])).sum() + params["fresh"][0]


def test_a_price_is_what_the_loss_rises_by_when_one_part_alone_is_set_halfway_back():
    found = prices.prices(loss, HERE, START, PARTS, 3)
    np.testing.assert_allclose(found, [10 + 2 - 6 + 12 + 5, -1, 3, -6])


def test_what_costs_more_than_its_share_is_let_go_and_the_rest_is_held_more_within_bounds():
    strength = {"a": np.float32(1), "b": np.array([6, 0], np.float32), "fresh": None}
    found = np.array([2.0, 0.3, -0.1, -0.1])
    new = prices.moved(strength, PARTS, found, share=0.1)
    np.testing.assert_allclose(new["a"], 1 / 1.5)
    np.testing.assert_allclose(new["b"], [8, 0])  # 9 is above the bound; what is free stays free
    assert new["fresh"] is None
    np.testing.assert_allclose(prices.moved(strength, PARTS, found, share=0.2)["a"], 1.5)
    assert prices.of_parts(new, PARTS, 3) == (pytest.approx(1 / 1.5, abs=1e-4), 8.0, 0.0)


@pytest.mark.parametrize(("of", "size"), [("modules", 4), ("paper", 13)])
def test_every_pretrained_tensor_of_the_model_has_a_part(of, size):
    shapes = jax.eval_shape(lambda: initial(Program(), None, 0))
    pricing = prices.pricing_of(Point("x", "", lambda_max=3.0, price_share=0.1, price_of=of), shapes)
    assert pricing.size == size
    found = np.concatenate([np.atleast_1d(p) for p in jax.tree.leaves(pricing.parts)])
    assert set(found) == set(range(1, size + 1))
    assert prices.pricing_of(Point("x", "", lambda_max=3.0), shapes) is None
