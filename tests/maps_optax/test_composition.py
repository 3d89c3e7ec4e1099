"""One matrix: every exported transformation within Optax's wrappers and program transformations."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import maps_optax as mx
from tests.maps_optax.matrix import (
    OLD,
    POSITIONS,
    STACK,
    STRENGTH,
    TRANSFORMS,
    adam_and,
    alone,
    bare,
    close,
    distance,
    gradient,
    start,
    train,
)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_holds_the_weights_and_frees_what_is_free(name: str) -> None:
    held, free = alone(name), bare(name)
    assert distance(held, name) < 0.97 * distance(free, name)
    if name not in ("spd number", "clip, adamw, spd"):  # one clips by the norm of all, the other frees nothing
        np.testing.assert_array_equal(held["b"]["d"], free["b"]["d"])


@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_state_keeps_its_structure_and_the_step_is_traced_once(name: str) -> None:
    tx, params, traces = TRANSFORMS[name](), start(name), 0

    def step(grads: Any, state: Any, params: Any) -> Any:
        nonlocal traces
        traces += 1
        return tx.update(grads, state, params)

    jitted, state = jax.jit(step), tx.init(params)
    first = jax.tree_util.tree_map(lambda x: (x.shape, x.dtype), state)
    for t in range(3):
        updates, state = jitted(gradient(params, t), state, params)
        params = optax.apply_updates(params, updates)
    assert jax.tree_util.tree_map(lambda x: (x.shape, x.dtype), state) == first
    assert traces == 1  # a weak type or another dtype would trace again


@pytest.mark.parametrize("name", TRANSFORMS)
def test_carried_by_scan(name: str) -> None:
    tx = TRANSFORMS[name]()

    def step(carry: Any, t: Any) -> Any:
        params, state = carry
        sign = jnp.where(t < 4, -1.0, 0.3)
        grads = jax.tree_util.tree_map(lambda x: sign * x + 0.01 * (t + 1), params)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (start(name), tx.init(start(name))), jnp.arange(8))
    close(params, alone(name), atol=1e-5)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_eager_jitted_and_abstract_init_agree(name: str) -> None:
    tx, params = TRANSFORMS[name](), start(name)
    eager, jitted, abstract = tx.init(params), jax.jit(tx.init)(params), jax.eval_shape(tx.init, params)
    close(eager, jitted, atol=0)
    jax.tree_util.tree_map(lambda x, y: None if (x.shape, x.dtype) == (y.shape, y.dtype) else 1 / 0, eager, abstract)


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("jitted", [False, True])
def test_a_donated_train_state(name: str, jitted: bool) -> None:
    tx = TRANSFORMS[name]()
    params = jax.tree_util.tree_map(jnp.array, start(name))
    state = (jax.jit(tx.init) if jitted else tx.init)(params)
    # A step that uses every leaf, as MultiSteps' does: `jit` drops, and does not donate, what tx.update never reads.
    everything = jax.jit(lambda tree: jax.tree_util.tree_map(lambda x: x + 0, tree), donate_argnums=0)
    params, state = everything((params, state))

    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    donating = jax.jit(step, donate_argnums=(0, 1))
    for t in range(8):
        params, state = donating(params, state, gradient(params, t))
    close(params, alone(name))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_multi_steps_around_it_sees_the_accumulated_gradient(name: str) -> None:
    twice = optax.MultiSteps(TRANSFORMS[name](), 2)
    params = start(name)
    state = twice.init(params)
    step = jax.jit(twice.update)
    for t in range(8):
        grads = gradient(params, t)
        for noise in (0.5, -0.5):  # the mean of the two is the gradient
            micro = jax.tree_util.tree_map(lambda g, noise=noise: g + noise, grads)
            updates, state = step(micro, state, params)
            params = optax.apply_updates(params, updates)
    close(params, alone(name), atol=1e-4 if "mars" not in name else 1e-3)


@pytest.mark.filterwarnings("ignore:maps_optax estimates")
def test_multi_steps_around_the_literal_chain_estimates_from_the_accumulated_step() -> None:
    literal = optax.chain(optax.adam(0.1), mx.spd(STRENGTH))
    once, state = train(literal)
    twice, doubled = train(optax.MultiSteps(literal, 2), per_step=2)
    assert float(state[1].triggered.max()) == 1
    np.testing.assert_array_equal(doubled.inner_opt_state[1].count, state[1].count)
    close(twice, once)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_apply_if_finite(name: str) -> None:
    wrapped = optax.apply_if_finite(TRANSFORMS[name](), 5)
    close(train(wrapped, start(name))[0], alone(name))
    params, state = start(name), wrapped.init(start(name))
    updates, after = wrapped.update(jax.tree_util.tree_map(lambda x: x * jnp.nan, params), state, params)
    close(updates, jax.tree_util.tree_map(jnp.zeros_like, updates), atol=0)
    close(after.inner_state, state.inner_state, atol=0)


def test_what_adapt_has_learnt_survives_a_checkpoint_and_a_new_anchor() -> None:
    for name in ("spd hypergradient", "maps drift budget"):
        tx, (params, state) = TRANSFORMS[name](), train(TRANSFORMS[name]())
        start_of, learnt = tx.init(start())[1].strength, state[1].strength
        assert float(jnp.abs(learnt - start_of).max()) > 0.1
        plain = jax.tree_util.tree_map(np.asarray, mx.detach_anchor(state))  # what a file holds
        back = mx.attach_anchor(jax.tree_util.tree_map(jnp.asarray, plain), start())
        close(back, state, atol=0)
        once, again = (jax.jit(tx.update)(gradient(params, 8), s, params) for s in (state, back))
        close(once, again, atol=0)
        np.testing.assert_array_equal(mx.set_anchor(state, params)[1].strength, learnt)


INJECTED: dict[str, tuple[str, Callable[[], Any]]] = {
    "a number": ("maps", lambda: optax.inject_hyperparams(mx.maps)(POSITIONS, lambda_max=2.0)),
    "a schedule": (
        "maps scheduled",
        lambda: optax.inject_hyperparams(mx.maps)(POSITIONS, lambda_max=optax.linear_schedule(2.0, 1.0, 4)),
    ),
    "a number, adapted": (
        "maps drift budget",
        lambda: optax.inject_hyperparams(mx.maps, static_args=("adapt",))(
            POSITIONS, lambda_max=1.0, adapt=mx.drift_budget(0.05, 0.5)
        ),
    ),
    "strength": ("spd number", lambda: optax.inject_hyperparams(mx.spd)(1.0)),
    "max_pull": ("spd tree", lambda: optax.inject_hyperparams(mx.spd)(STRENGTH, max_pull=9.0)),
    "callable positions": (
        "maps",
        lambda: optax.inject_hyperparams(mx.maps, static_args=("layers",))(lambda params: POSITIONS, lambda_max=2.0),
    ),
}


@pytest.mark.skipif(OLD, reason="inject_hyperparams of optax 0.1.5 hands no gradient on")
@pytest.mark.parametrize("what", INJECTED)
def test_inject_hyperparams(what: str) -> None:
    name, member = INJECTED[what]
    params, state = train(mx.chain(optax.adam(0.1), member()))
    close(params, alone(name))
    if what == "a number":
        assert float(state[1].hyperparams["lambda_max"]) == 2.0


def test_inject_hyperparams_around_the_chain() -> None:
    def make(lambda_max: Any) -> Any:
        return adam_and(mx.maps(STACK, lambda_max))

    around, state = train(optax.inject_hyperparams(make)(lambda_max=2.0))
    inside, _ = train(make(2.0))
    close(around, inside)
    assert distance(around) < 0.97 * distance(bare("maps"))
    assert float(state.hyperparams["lambda_max"]) == 2.0


def test_a_hyperparameter_of_zero_can_be_raised_later() -> None:
    tx = optax.inject_hyperparams(lambda strength: adam_and(mx.spd(strength)))(strength=0.0)
    _, never = train(tx)
    assert len(jax.tree_util.tree_leaves(never.inner_state[1].anchor)) == 3
    assert float(jnp.abs(never.inner_state[1].pull).max()) == 0
    raised = tx.init(start())
    raised.hyperparams["strength"] = jnp.asarray(1.0)
    params, step = start(), jax.jit(tx.update)
    for t in range(8):
        updates, raised = step(gradient(params, t), raised, params)
        params = optax.apply_updates(params, updates)
    close(params, alone("spd number"))


@pytest.mark.skipif(OLD, reason="optax 0.1.5 has no tree_map_params")
@pytest.mark.parametrize("name", TRANSFORMS)
def test_tree_map_params_maps_anchors_and_nothing_else(name: str) -> None:
    tx, params = TRANSFORMS[name](), start(name)
    state = tx.init(params)
    specs = jax.tree_util.tree_map(lambda x: f"spec of rank {x.ndim}", params)
    mapped = optax.tree_utils.tree_map_params(
        tx,
        lambda leaf, spec: leaf if isinstance(leaf, optax.MaskedNode) else (spec, leaf.ndim),
        state,
        specs,
        transform_non_params=lambda _: "other",
        is_leaf=lambda x: isinstance(x, optax.MaskedNode),
    )
    member = next(s for s in mapped if isinstance(s, (mx.SPDState, mx.L2SPState)))
    if name == "lora product":
        assert jax.tree_util.tree_leaves(member.anchor) == []
    else:
        assert member.anchor["a"] == ("spec of rank 2", 2)
        rank = params["b"]["c"].ndim
        assert member.anchor["b"]["c"] == (f"spec of rank {rank}", rank)
    if isinstance(member, mx.SPDState):
        assert set(member._replace(anchor="other")) == {"other"}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_vmap_over_seeds(name: str) -> None:
    tx = TRANSFORMS[name]()
    scales = jnp.asarray([1.0, 1.7])
    params = jax.vmap(lambda s: jax.tree_util.tree_map(lambda x: s * x, start(name)))(scales)
    state = jax.vmap(tx.init)(params)
    step = jax.jit(jax.vmap(tx.update))
    for t in range(8):
        updates, state = step(jax.vmap(lambda p, t=t: gradient(p, t))(params), state, params)
        params = optax.apply_updates(params, updates)
    for i, scale in enumerate(scales):
        one, _ = train(TRANSFORMS[name](), jax.tree_util.tree_map(lambda x, s=scale: s * x, start(name)))
        close(jax.tree_util.tree_map(lambda x, i=i: x[i], params), one, atol=1e-5)
