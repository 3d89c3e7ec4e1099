"""θ0: a real copy, placed as asked, out of a checkpoint and back, and no other weights."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import maps_optax as mx


def params(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "stack": jnp.asarray(rng.normal(size=(3, 4, 5)), jnp.float32),
        "w": jnp.asarray(rng.normal(size=(4,)), jnp.float32),
        "free": jnp.asarray(rng.normal(size=(2,)), jnp.float32),
    }


def optimizer(**options: Any) -> Any:
    strength = {"stack": np.array([2.0, 1.0, 0.5]), "w": 1.0, "free": None}
    return mx.chain(optax.adam(0.1), mx.spd(strength, **options))


def run(tx: Any, theta: Any, state: Any, start: int, stop: int) -> tuple[Any, Any]:
    step = jax.jit(tx.update)
    for t in range(start, stop):
        grads = jax.tree_util.tree_map(lambda x, t=t: (-x if t < 4 else x) + 0.01 * t, theta)
        updates, state = step(grads, state, theta)
        theta = optax.apply_updates(theta, updates)
    return theta, state


def same(a: Any, b: Any) -> None:
    assert jax.tree_util.tree_structure(a) == jax.tree_util.tree_structure(b)
    jax.tree_util.tree_map(np.testing.assert_array_equal, a, b)


def test_free_leaves_keep_no_anchor() -> None:
    anchor = optimizer().init(params())[1].anchor
    assert isinstance(anchor["free"], optax.MaskedNode)
    assert len(jax.tree_util.tree_leaves(anchor)) == 2


@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16"])
def test_the_anchor_shares_no_buffer_with_its_parameter(dtype: Any) -> None:
    theta = params()
    state = optimizer(anchor_dtype=dtype).init(theta)
    for key in ("stack", "w"):
        assert state[1].anchor[key].unsafe_buffer_pointer() != theta[key].unsafe_buffer_pointer()
        assert state[1].anchor[key].dtype == jnp.dtype(dtype or "float32")


def test_a_bf16_anchor_of_bf16_weights_is_lossless() -> None:
    theta = jax.tree_util.tree_map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), params())
    full, half = optimizer(), optimizer(anchor_dtype=jnp.bfloat16)
    a, b = (run(tx, theta, tx.init(theta), 0, 8)[0] for tx in (full, half))
    # Equal anchors; the two programs may still round differently.
    jax.tree_util.tree_map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-6), a, b)


@pytest.mark.skipif(not hasattr(jax, "memory"), reason=f"jax {jax.__version__} has no memory spaces")
@pytest.mark.parametrize("jitted", [False, True])
def test_an_anchor_in_host_memory(jitted: bool) -> None:
    theta, host = params(), optimizer(anchor_memory_kind="pinned_host")
    state = (jax.jit(host.init) if jitted else host.init)(theta)
    end, state = run(host, theta, state, 0, 8)
    assert state[1].anchor["stack"].sharding.memory_kind == "pinned_host"
    plain = optimizer()
    same(end, run(plain, theta, plain.init(theta), 0, 8)[0])
    back = mx.attach_anchor(mx.detach_anchor(state), theta, memory_kind="pinned_host")
    assert back[1].anchor["stack"].sharding.memory_kind == "pinned_host"
    moved = mx.set_anchor(state, params(1))
    assert moved[1].anchor["stack"].sharding.memory_kind == "pinned_host"


def test_a_memory_that_the_backend_lacks() -> None:
    with pytest.raises(ValueError, match="no memory 'moon'"):
        optimizer(anchor_memory_kind="moon").init(params())


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_detach_save_restore_attach_continues_bit_for_bit(dtype: Any, tmp_path: Path) -> None:
    ocp = pytest.importorskip("orbax.checkpoint")
    theta0, tx = params(), optimizer(anchor_dtype=dtype)
    straight, _ = run(tx, theta0, tx.init(theta0), 0, 10)
    half, state = run(tx, theta0, tx.init(theta0), 0, 5)
    target = {"params": half, "opt_state": jax.eval_shape(mx.detach_anchor, state)}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "saved", {"params": half, "opt_state": mx.detach_anchor(state)})
        checkpointer.wait_until_finished()
        saved = checkpointer.restore(tmp_path / "saved", target)
    stored = sum(x.nbytes for x in jax.tree_util.tree_leaves(saved["opt_state"][1].anchor))
    assert stored == 2 * 12
    restored = mx.attach_anchor(saved["opt_state"], theta0)
    same(restored, state)
    same(run(tx, saved["params"], restored, 5, 10)[0], straight)


def test_other_weights_are_refused() -> None:
    saved = mx.detach_anchor(optimizer().init(params()))
    with pytest.raises(ValueError, match="not the weights that training started from: 2 of 2 leaves differ"):
        mx.attach_anchor(saved, params(1))
    changed = {**params(), "w": params()["w"].at[2].add(1e-6)}
    with pytest.raises(ValueError, match="1 of 2 leaves differ, the first is 'w'"):
        mx.attach_anchor(saved, changed)
    with pytest.raises(ValueError, match="no leaf 'w'"):
        mx.attach_anchor(saved, {"stack": params()["stack"]})
    mx.attach_anchor(saved, {**params(), "free": jnp.zeros(7)})  # free leaves do not matter


def test_the_fingerprint_sees_every_bit_and_its_place() -> None:
    base = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6)), jnp.float32)
    others = [
        base.at[0, 0].set(base[0, 1]).at[0, 1].set(base[0, 0]),
        base.at[3, 5].multiply(1 + 2e-7),
        base.at[1, 1].set(0.0),
        base.T.reshape(4, 6),
        base[::-1],
        base[:, ::-1],
        base.reshape(6, 4),
        base.reshape(1, 24),
        base.astype(jnp.bfloat16),
        jnp.zeros_like(base),
        -jnp.zeros_like(base),
    ]

    def fingerprint(x: Any) -> tuple[int, ...]:
        return tuple(np.asarray(mx.detach_anchor(mx.spd(1.0).init(x)).anchor.fingerprints).tolist())

    assert len({fingerprint(x) for x in [base, *others]}) == 1 + len(others)
    assert fingerprint(base) == fingerprint(jnp.array(base))


def test_set_anchor_starts_from_the_loaded_weights() -> None:
    """As big_vision does: init before the pretrained weights are loaded."""
    random, loaded, tx = params(1), params(), optimizer()
    late = mx.set_anchor(tx.init(random), loaded)
    fresh = tx.init(loaded)
    same(late[1], fresh[1])
    same(mx.set_anchor(mx.detach_anchor(tx.init(random)), loaded)[1].anchor, fresh[1].anchor)
    with pytest.raises(ValueError, match="'w' has shape"):
        mx.set_anchor(fresh, {**loaded, "w": jnp.zeros(9)})


@pytest.mark.filterwarnings("ignore:maps_optax estimates")
def test_set_anchor_starts_drift_and_estimate_afresh() -> None:
    tx = optax.chain(optax.adam(0.1), mx.spd(1.0))
    theta, state = run(tx, params(), tx.init(params()), 0, 6)
    assert (np.abs(state[1].carry) > 0).all() and (state[1].drift > 0).all()
    moved = mx.set_anchor(state, theta)
    assert (moved[1].carry == 0).all() and (moved[1].drift == 0).all()
    assert moved[1].count == 6
    same(moved[0], state[0])


def test_anchors_that_are_set_or_attached_share_no_buffer_either() -> None:
    theta, tx = params(), optimizer()
    for state in (mx.set_anchor(tx.init(theta), theta), mx.attach_anchor(mx.detach_anchor(tx.init(theta)), theta)):
        assert state[1].anchor["w"].unsafe_buffer_pointer() != theta["w"].unsafe_buffer_pointer()


def test_the_state_is_found_however_wrapped() -> None:
    wrapped = optax.MultiSteps(optax.apply_if_finite(optimizer(), 3), 2)
    state = wrapped.init(params())
    same(mx.attach_anchor(mx.detach_anchor(state), params()), state)


@pytest.mark.parametrize("function", [mx.detach_anchor, mx.metrics, lambda s: mx.set_anchor(s, params())])
def test_a_state_without_an_anchor(function: Any) -> None:
    with pytest.raises(ValueError, match="holds no SPDState"):
        function(optax.adam(0.1).init(params()))


def test_l2_sp_states_too() -> None:
    tx = mx.l2_sp(1.0)
    state = tx.init(params())
    same(mx.attach_anchor(mx.detach_anchor(state), params()), state)


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_under_jit_an_anchor_is_set_taken_out_and_put_back_as_outside(dtype: Any) -> None:
    tx = optimizer(anchor_dtype=dtype)
    theta, state = run(tx, params(), tx.init(params()), 0, 6)
    same(jax.jit(mx.set_anchor)(state, theta), mx.set_anchor(state, theta))
    detached = jax.jit(mx.detach_anchor)(state)
    same(detached, mx.detach_anchor(state))
    theta0 = jax.tree_util.tree_map(lambda x: x.astype(dtype or x.dtype), params())  # under jit in the anchor's dtype
    same(jax.jit(mx.attach_anchor)(detached, theta0), state)
    with pytest.raises(Exception, match="not the weights that training started from: 2 of 2 leaves differ"):
        jax.block_until_ready(jax.jit(mx.attach_anchor)(detached, params(seed=1)))
        jax.effects_barrier()


@pytest.mark.skipif(not hasattr(jax, "memory"), reason="this JAX keeps no array in host memory under jit")
def test_under_jit_a_new_anchor_stays_in_host_memory() -> None:
    state = optimizer(anchor_memory_kind="pinned_host").init(params())
    moved = jax.jit(mx.set_anchor)(state, params(seed=1))
    assert moved[1].anchor["stack"].sharding.memory_kind == "pinned_host"
    np.testing.assert_array_equal(moved[1].anchor["stack"], params(seed=1)["stack"])


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("jit", [lambda f: f, jax.jit])
def test_the_norm_is_that_of_each_layer_however_the_anchor_was_set(jit: Any, mapped: bool) -> None:
    """Whole leaves, one that stacks layers, one that stacks a single layer; `jax.jit` hides which."""
    tx = mx.spd({"whole": 1.0, "stack": np.ones(3), "single": np.ones(1), "free": None})
    shapes = {"free": (2,), "single": (1, 2), "stack": (3, 2, 2), "whole": (3, 4)}
    rng = np.random.default_rng(0)
    trees = [{k: jnp.asarray(rng.normal(size=(2, *s)), jnp.float32) for k, s in shapes.items()} for _ in range(2)]
    copies = trees if mapped else [jax.tree_util.tree_map(lambda x: x[0], tree) for tree in trees]
    state = jit(jax.vmap(tx.init) if mapped else tx.init)(copies[0])
    for tree, found in zip(trees, (state, jit(mx.set_anchor)(state, copies[1]))):
        for i, norms in enumerate(found.norm if mapped else [found.norm]):
            layers = [*tree["single"][i], *tree["stack"][i], tree["whole"][i]]
            np.testing.assert_allclose(norms, [np.linalg.norm(x) for x in layers], rtol=1e-6)
