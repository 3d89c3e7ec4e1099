"""The diffusion head: schedule, forward and backward process against closed forms, and that it learns two modes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from octo_integration.model.heads.diffusion import (
    ETA,
    DiffusionConfig,
    DiffusionHead,
    alphas,
    backward,
    denoised,
    forward,
)

STEPS = 20


def test_the_cosine_schedule():
    found = alphas(STEPS)
    t = np.arange(STEPS + 1)
    share = np.cos((t / STEPS + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(found[:-1], share[1:-1] / share[0], rtol=1e-12)
    # The last step would leave nothing of the actions; a thousandth of the step before is kept.
    assert found[-1] == pytest.approx(found[-2] * 0.001)
    beta = 1 - found / np.concatenate([[1.0], found[:-1]])
    assert (np.diff(beta) > 0).all()
    np.testing.assert_allclose(beta[[0, -2, -1]], [0.00799, 0.74848, 0.999], atol=1e-5)


def test_the_forward_process_keeps_unit_variance_and_is_undone_by_its_noise():
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(2, 20_000)).astype(np.float32)
    for alpha in alphas(STEPS):
        x_t = forward(x, noise, np.float32(alpha))
        assert np.std(x_t) == pytest.approx(1.0, abs=0.02)
        np.testing.assert_allclose(denoised(x_t, noise, np.float32(alpha)), x, atol=1e-3)


@pytest.mark.parametrize("eta", ETA.values())
def test_one_step_back_is_the_forward_process_one_step_earlier(eta):
    """Of known actions, x_{t-1} has the mean and the variance that `forward` gives it."""
    rng = np.random.default_rng(0)
    noise, drawn = rng.normal(size=(2, 100_000)).astype(np.float32)
    share = alphas(STEPS)
    for t in (1, 7, STEPS - 1):
        alpha, before = (np.float32(share[i]) for i in (t, t - 1))
        x_t = forward(0.7, noise, alpha)
        got = np.asarray(backward(x_t, 0.7, drawn, alpha, before, eta))
        assert got.mean() == pytest.approx(np.sqrt(before) * 0.7, abs=0.01)
        assert got.std() == pytest.approx(np.sqrt(1 - before), rel=0.02)


def test_ddpm_is_the_posterior_and_ddim_keeps_the_noise():
    share, t = alphas(STEPS), 9
    alpha, before = share[t], share[t - 1]
    beta = 1 - alpha / before
    x_t, x, drawn = (np.random.default_rng(0).normal(size=(3, 50))).astype(np.float32)
    # arXiv 2006.11239, eq. 7.
    mean = (np.sqrt(before) * beta * x + np.sqrt(alpha / before) * (1 - before) * x_t) / (1 - alpha)
    wanted = mean + np.sqrt((1 - before) / (1 - alpha) * beta) * drawn
    np.testing.assert_allclose(backward(x_t, x, drawn, alpha, before, ETA["ddpm"]), wanted, atol=1e-5)
    noise = np.float32(0.3)
    got = backward(forward(x, noise, alpha), x, drawn, alpha, before, ETA["ddim"])
    np.testing.assert_allclose(got, forward(x, noise, before), atol=1e-5)


def test_the_last_step_back_gives_the_actions():
    x_t, x, drawn = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    for eta in ETA.values():
        np.testing.assert_allclose(backward(x_t, x, drawn, alphas(STEPS)[0], 1.0, eta), x, atol=1e-6)


MODES = np.array([[0.8, -0.4], [-0.8, 0.4]], np.float32)


@functools.cache
def trained():
    """A head after 600 steps on two equally likely chunks; the readouts say nothing."""
    head = DiffusionHead(DiffusionConfig(hidden=32, blocks=1, limit=1.5), 2, "float32")
    x, key = jnp.zeros((256, 1, 4)), jax.random.key(0)
    tx = optax.adam(optax.cosine_decay_schedule(5e-3, 600))

    @jax.jit
    def train(key):
        params = head.init(key, x, key, method="predict")["params"]

        def step(carry, key):
            params, state = carry
            which = jax.random.bernoulli(key, shape=(len(x),)).astype(int)
            action = jnp.asarray(MODES)[which][:, None]

            def loss(params):
                return head.apply({"params": params}, x, action, jnp.ones_like(action, bool), key, method="loss")[0]

            value, grads = jax.value_and_grad(loss)(params)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), value

        (params, _), values = jax.lax.scan(step, (params, tx.init(params)), jax.random.split(key, 600))
        return params, values

    return train(key)


def test_training_lowers_the_loss():
    _, values = trained()
    assert values[:10].mean() > 3 * values[-50:].mean()


@pytest.mark.parametrize("sampler", ETA)
def test_samples_are_the_modes_in_equal_shares(sampler):
    head = DiffusionHead(DiffusionConfig(hidden=32, blocks=1, limit=1.5, sampler=sampler), 2, "float32")
    sample = jax.jit(functools.partial(head.apply, method="predict"))
    drawn = np.asarray(sample({"params": trained()[0]}, jnp.zeros((400, 1, 4)), jax.random.key(1)))[:, 0]
    distance = np.linalg.norm(drawn[:, None] - MODES, axis=-1)
    assert (distance.min(1) < 0.2).mean() > 0.95
    assert 0.4 < (distance[:, 0] < distance[:, 1]).mean() < 0.6


def test_the_sampler_stays_within_the_limit_and_follows_the_key():
    # A limit tighter than the modes it has learnt.
    head, x = (
        DiffusionHead(DiffusionConfig(hidden=32, blocks=1, limit=0.3), 2, "float32"),
        jnp.zeros((50, 1, 4)),
    )
    sample = jax.jit(functools.partial(head.apply, {"params": trained()[0]}, method="predict"))
    one, other = (np.asarray(sample(x, jax.random.key(i))) for i in (0, 1))
    assert 0.29 < np.abs(one).max() <= 0.3 * (1 + 1e-6)
    assert np.abs(one - other).max() > 1e-3
    # A row's draw is its own, however many rows there are: short batches may be filled up.
    np.testing.assert_allclose(sample(x[:20], jax.random.key(0)), one[:20], atol=1e-5)
