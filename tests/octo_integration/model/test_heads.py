"""The action heads: one interface, masks per entry, and each by its formula."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from octo_integration.model import heads
from octo_integration.model.heads import HEADS, config_of, other
from octo_integration.model.heads.diffusion import DiffusionConfig
from octo_integration.model.heads.regression import L1Config
from octo_integration.model.heads.tokens import TokensConfig, decode, encode
from octo_integration.model.named import model_config

ROWS, CHUNK, ACTIONS, WIDTH = 3, 2, 4, 8
CONFIG = {
    "l1": L1Config(hidden=8),
    "diffusion": DiffusionConfig(hidden=8, blocks=1, steps=5),
    "tokens": TokensConfig(bins=16),
}


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@functools.cache
def made(config):
    """A head, its parameters (with noise: no output is zero) and both functions, jitted."""
    head = config.make(ACTIONS, "float32")
    x, key = jnp.asarray(random(ROWS, CHUNK, WIDTH)), jax.random.key(0)
    params = jax.jit(functools.partial(head.init, method="predict"))(key, x, key)["params"]
    params = jax.tree.map(lambda p: p + 0.1 * random(*p.shape, seed=1), params)
    loss, predict = (jax.jit(functools.partial(head.apply, method=name)) for name in ("loss", "predict"))
    return {"params": params}, loss, predict


def example(dtype="float32"):
    x = jnp.asarray(random(ROWS, CHUNK, WIDTH), dtype)
    return x, random(ROWS, CHUNK, ACTIONS, seed=2), np.ones((ROWS, CHUNK, ACTIONS), bool)


def test_another_head_has_the_knobs_that_both_have():
    assert [config_of(kind) for kind in HEADS] == [type(CONFIG[kind]) for kind in HEADS]
    of_octo = DiffusionConfig(hidden=64, blocks=1, limit=2.0)
    assert other("l1", of_octo) == L1Config(hidden=64)
    assert other("tokens", of_octo) == TokensConfig(limit=2.0)
    assert other("diffusion", of_octo) == of_octo
    with pytest.raises(ValueError, match="^there is no action head 'flow'; there are: l1, diffusion, tokens.$"):
        other("flow", of_octo)


def test_a_head_is_a_file_and_an_entry(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "import dataclasses\n"
        "from octo_integration.model.heads import HeadConfig\n"
        "@dataclasses.dataclass(frozen=True)\n"
        "class MyConfig(HeadConfig):\n"
        "    hidden: int = 3\n"
        "    def make(self, action_dim, dtype):\n"
        "        return self.hidden, action_dim, dtype\n"
    )
    monkeypatch.setattr(heads, "__path__", [*heads.__path__, str(tmp_path)])
    monkeypatch.setattr(heads, "HEADS", {**HEADS, "mine": "mine:MyConfig"})
    assert model_config("octo_small", "mine").head.make(7, "float32") == (256, 7, "float32")
    del sys.modules["octo_integration.model.heads.mine"]


@pytest.mark.parametrize("kind", HEADS)
def test_the_interface(kind):
    params, loss, predict = made(CONFIG[kind])
    x, action, mask = example()
    value, metrics = loss(params, x, action, mask, jax.random.key(1))
    assert value.shape == () and value.dtype == jnp.float32 and value > 0
    assert all(m.shape == () and np.isfinite(m) for m in metrics.values())
    actions = predict(params, x, jax.random.key(1))
    assert actions.shape == action.shape and actions.dtype == jnp.float32
    np.testing.assert_array_equal(actions, predict(params, x, jax.random.key(1)))


@pytest.mark.parametrize("kind", HEADS)
def test_every_parameter_is_made_by_predict_and_reached_by_the_loss(kind):
    params, loss, _ = made(CONFIG[kind])
    grads = jax.grad(lambda p: loss(p, *example(), jax.random.key(1))[0])(params)
    assert all(jnp.abs(g).max() > 0 for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("kind", ["l1", "tokens"])
def test_an_entry_that_does_not_count_changes_nothing(kind):
    params, loss, _ = made(CONFIG[kind])
    x, action, mask = example()
    mask[0, 1, 2] = False
    masked = loss(params, x, action, mask, jax.random.key(1))
    other = action.copy()
    other[0, 1, 2] = -4.0
    assert jax.tree.map(float, loss(params, x, other, mask, jax.random.key(1))) == jax.tree.map(float, masked)


@pytest.mark.parametrize("kind", HEADS)
def test_every_entry_of_the_mask_counts_once(kind):
    params, loss, _ = made(CONFIG[kind])
    x, action, mask = example()
    mask[0, 1, 2] = False
    most, one, whole, none = (
        float(loss(params, x, action, m, jax.random.key(1))[0]) for m in (mask, ~mask, mask | ~mask, mask & ~mask)
    )
    assert whole == pytest.approx((most * (mask.size - 1) + one) / mask.size, rel=1e-5)
    assert none == 0.0


@pytest.mark.parametrize("kind", HEADS)
def test_losses_and_actions_are_float32_under_bfloat16(kind):
    head, params = CONFIG[kind].make(ACTIONS, "bfloat16"), made(CONFIG[kind])[0]
    value, _ = head.apply(params, *example("bfloat16"), jax.random.key(1), method="loss")
    exact, _ = made(CONFIG[kind])[1](params, *example(), jax.random.key(1))
    assert value.dtype == jnp.float32 and 0 < abs(value - exact) < 0.05 * exact
    predict = functools.partial(head.apply, method="predict")
    assert jax.eval_shape(predict, params, example("bfloat16")[0], jax.random.key(1)).dtype == jnp.float32


@pytest.mark.parametrize("kind", ["l1", "tokens"])
def test_first_actions_are_near_the_mean_of_the_data(kind):
    head = CONFIG[kind].make(ACTIONS, "float32")
    x, key = jnp.asarray(10 * random(4, 8, 32)), jax.random.key(0)
    if kind == "l1":
        actions, _ = head.init_with_output(key, x, key, method="predict")
        assert 0 < jnp.abs(actions).max() < 0.3
    else:
        logits, _ = head.init_with_output(key, x)
        assert 0 < jnp.abs(logits).max() < 0.5  # every bin is about as likely


def test_l1_is_the_mean_distance():
    params, loss, predict = made(CONFIG["l1"])
    x, action, mask = example()
    wanted = np.abs(np.asarray(predict(params, x, jax.random.key(0))) - action).mean()
    assert float(loss(params, x, action, mask, jax.random.key(1))[0]) == pytest.approx(wanted, rel=1e-5)


def test_bins_give_back_actions_within_half_a_bin():
    bins, limit = 256, 5.0
    action = np.linspace(-limit, limit, 4001).astype(np.float32)
    tokens = np.asarray(encode(action, bins, limit))
    assert tokens.min() == 0 and tokens.max() == bins - 1 and (np.diff(tokens) >= 0).all()
    assert np.abs(decode(tokens, bins, limit) - action).max() <= limit / bins * (1 + 1e-5)
    every = np.arange(bins)
    np.testing.assert_array_equal(encode(decode(every, bins, limit), bins, limit), every)
    np.testing.assert_array_equal(encode(np.array([-99.0, 99.0]), bins, limit), [0, bins - 1])


def test_the_tokens_loss_is_the_cross_entropy_of_the_right_bin():
    config = CONFIG["tokens"]
    params, loss, predict = made(config)
    x, action, mask = example()
    logits = np.asarray(config.make(ACTIONS, "float32").apply(params, x))
    share = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    right = np.floor((action + config.limit) / (2 * config.limit) * config.bins).astype(int)
    entropy = -np.log(np.take_along_axis(share, right[..., None], -1))
    value, metrics = loss(params, x, action, mask, jax.random.key(1))
    assert float(value) == pytest.approx(entropy.mean(), rel=1e-5)
    assert float(metrics["accuracy"]) == pytest.approx((logits.argmax(-1) == right).mean())
    centres = (np.arange(config.bins) + 0.5) / config.bins * 2 * config.limit - config.limit
    np.testing.assert_allclose(predict(params, x, jax.random.key(1)), centres[logits.argmax(-1)], atol=1e-5)


def test_tokens_are_drawn_by_their_share_where_there_is_a_temperature():
    config = TokensConfig(bins=4, limit=2.0, temperature=0.5)
    params, _, predict = made(config)
    x = jnp.asarray(random(1, 1, WIDTH)).repeat(4000, 0)
    logits = np.asarray(config.make(ACTIONS, "float32").apply(params, x[:1]))[0, 0]
    drawn = np.asarray(predict(params, x, jax.random.key(0)))[:, 0]
    found = (drawn[..., None] == np.array([-1.5, -0.5, 0.5, 1.5])).mean(0)
    wanted = np.exp(logits / 0.5) / np.exp(logits / 0.5).sum(-1, keepdims=True)
    np.testing.assert_allclose(found, wanted, atol=0.03)
