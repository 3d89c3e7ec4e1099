"""The Octo client, against a stand-in with the interface of Octo's own code."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import maps_optax as mx
from octo_integration.clients import octo
from tests.octo_integration.clients import octo_stand_in as standin

LR = {"name": "constant", "init_value": 0.0, "peak_value": 0.05, "warmup_steps": 3}
ADAMW = {"learning_rate": LR, "weight_decay": 0.1}
T5 = ("*hf_model*",)
OPTIONS: dict[str, dict[str, Any]] = {
    "off": {"clip_gradient": None, "grad_accumulation_steps": None, "frozen_keys": None},
    "all": {"clip_gradient": 1.0, "grad_accumulation_steps": 2, "frozen_keys": T5},
}


def client(params: Any, lambda_max: Any = 2.0, **options: Any) -> Any:
    return octo.create_optimizer(standin.train_utils, params, lambda_max=lambda_max, **ADAMW, **options)[0]


def by_hand(
    params: Any, clip_gradient: Any = None, grad_accumulation_steps: Any = None, frozen_keys: Any = None
) -> Any:
    schedule = optax.linear_schedule(0.0, 0.05, 3)
    adamw = optax.adamw(schedule, weight_decay=0.1, mu_dtype=jnp.bfloat16, mask=standin.decayed(params))
    tx: Any = mx.chain(adamw, mx.maps(mx.presets.octo(), 2.0))
    if grad_accumulation_steps:
        tx = optax.MultiSteps(tx, grad_accumulation_steps)
    if clip_gradient:
        tx = optax.chain(optax.clip_by_global_norm(clip_gradient), tx)
    if frozen_keys:
        labels = standin.partitions(params, frozen_keys)
        tx = optax.multi_transform({"trainable": tx, "frozen": optax.set_to_zero()}, labels)
    return tx


def gradient(params: Any, t: int) -> Any:
    """Away from the start for some steps, then back, so that it triggers; its norm is far above 1."""
    sign = -1.0 if t < 4 else 0.3
    return jax.tree_util.tree_map(lambda x: sign * x + 0.01 * (t + 1), params)


def equal(a: Any, b: Any) -> None:
    jax.tree_util.tree_map(np.testing.assert_array_equal, a, b)


def is_adam(node: Any) -> bool:
    return isinstance(node, optax.ScaleByAdamState)


def by_path(tree: Any) -> dict[str, Any]:
    pairs = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {"/".join(key.key for key in keys): leaf for keys, leaf in pairs}


def with_leaves(tree: Any, source: Any, *parts: str) -> Any:
    """`tree` with the leaves of `source` whose path holds one of `parts`."""

    def pick(keys: Any, old: Any, new: Any) -> Any:
        path = "/".join(key.key for key in keys)
        return new if any(part in path for part in parts) else old

    return jax.tree_util.tree_map_with_path(pick, tree, source)


@pytest.mark.parametrize("name", OPTIONS)
def test_is_to_the_bit_what_adamw_and_maps_chained_by_hand_inside_octos_wrappers_are(name: str) -> None:
    params = standin.octo_params()
    ours = standin.train(client(params, **OPTIONS[name]), params, gradient)
    reference = standin.train(by_hand(params, **OPTIONS[name]), params, gradient)
    equal((ours.params, ours.norms, ours.triggered), (reference.params, reference.norms, reference.triggered))
    assert 0 < np.mean(ours.triggered) < 1


@pytest.mark.parametrize("option", [{"clip_gradient": 1.0}, {"grad_accumulation_steps": 2}, {"frozen_keys": T5}])
def test_with_lambda_max_zero_it_is_octos_own_optimizer_to_the_bit(option: dict[str, Any]) -> None:
    params = standin.octo_params()
    own = standin.create_optimizer(params, **ADAMW, **option)[0]
    ours = standin.train(client(params, 0.0, **option), params, gradient)
    equal(ours.params, standin.train(own, params, gradient).params)


def test_frozen_leaves_keep_every_bit_even_under_a_bfloat16_anchor_and_have_no_anchor() -> None:
    params = standin.octo_params()
    tx = client(params, frozen_keys=("*hf_model*", "*encoderblock_10.*"), anchor_dtype=jnp.bfloat16)
    run = standin.train(tx, params, gradient)
    after, anchored = by_path(run.params), by_path(standin.anchors(run.opt_state)[0].anchor)
    for path, before in by_path(params).items():
        if "hf_model" in path or "encoderblock_10" in path:
            np.testing.assert_array_equal(after[path], before)
            assert path not in anchored
        else:
            assert np.any(after[path] != before), path
    assert {leaf.dtype for leaf in anchored.values()} == {jnp.dtype(jnp.bfloat16)}


def test_frozen_leaves_do_not_move_the_lambda_of_the_others() -> None:
    params = standin.octo_params()
    strengths = by_path(mx.strengths(mx.presets.octo(), params, 2.0))
    for frozen_keys in ((), T5, ("*encoderblock_10.*", "*encoder_norm*")):
        state = standin.anchors(client(params, frozen_keys=frozen_keys).init(params))[0]
        expected = [strengths[path] for path in by_path(state.anchor)]
        np.testing.assert_allclose(state.strength, expected, rtol=1e-6)


def test_micro_batches_make_one_step_on_their_mean_gradient_whose_sign_decides() -> None:
    params = standin.octo_params()

    def micro(params: Any, t: int) -> Any:
        factor = (4, 1, -2)[t % 3]  # 1 in the mean; the last alone would turn every sign
        return jax.tree_util.tree_map(lambda g: factor * g, gradient(params, t // 3))

    once = standin.train(client(params), params, gradient)
    thrice = standin.train(client(params, grad_accumulation_steps=3), params, micro, steps=24)
    jax.tree_util.tree_map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), thrice.params, once.params)
    equal(thrice.triggered[2::3], once.triggered)
    assert 0 < np.mean(once.triggered) < 1


def test_adam_accumulates_the_clipped_gradient() -> None:
    params = standin.octo_params()
    grads = jax.tree_util.tree_map(lambda x: 100 * x, params)
    for clip, norm in ((0.5, 0.5), (None, float(standin.global_norm(grads)))):
        tx = client(params, clip_gradient=clip, b1=0.75)
        state = tx.update(grads, tx.init(params), params)[1]
        adam = [s for s in jax.tree_util.tree_leaves(state, is_leaf=is_adam) if is_adam(s)]
        assert float(standin.global_norm(adam[0].mu)) == pytest.approx(0.25 * norm, rel=1e-2)  # bfloat16 moments


def test_the_learning_rate_and_the_norm_are_those_of_octo() -> None:
    params = standin.octo_params()
    _, rate, norm = octo.create_optimizer(standin.train_utils, params, lambda_max=1.0, frozen_keys=T5, **ADAMW)
    _, own_rate, own_norm = standin.create_optimizer(params, frozen_keys=T5, **ADAMW)
    assert [float(rate(t)) for t in range(5)] == [float(own_rate(t)) for t in range(5)]
    assert float(norm(params)) == float(own_norm(params)) < float(standin.global_norm(params))


def test_lambda_max_may_be_an_optax_schedule_and_the_stack_another() -> None:
    params = standin.octo_params()
    layers = mx.LayerStack({"octo": {r"octo_transformer/": "first"}}, free=[r"heads_\w+/"], tail=1)
    tx = client(params, optax.linear_schedule(2.0, 1.0, 4), layers=layers)
    state = standin.anchors(standin.train(tx, params, gradient, steps=3).opt_state)[0]
    np.testing.assert_allclose(state.strength, np.full_like(state.strength, 1.5))


# The hook for pretrained loaders.

UNLOADED = ("encoderblock_10", "encoder_norm", "StdConv_0/bias")


def load(params: Any) -> Any:
    """As Octo's `merge_params`: what the checkpoint lacks keeps its array."""
    return with_leaves(standin.octo_params(seed=1), params, *UNLOADED, "heads_action")


def test_theta0_is_what_the_loaders_left_not_what_the_optimizer_was_made_from() -> None:
    params = standin.octo_params()
    tx = client(params)
    loaded = standin.octo_params(seed=1)
    anchor = by_path(standin.anchors(tx.init(loaded))[0].anchor)
    for path, leaf in anchor.items():
        np.testing.assert_array_equal(leaf, by_path(loaded)[path])
    assert any("StdConv_0" in path for path in anchor)


def test_leaves_that_no_loader_filled_are_free_and_the_others_keep_the_lambda_of_the_whole_stack() -> None:
    params = standin.octo_params()
    state = standin.anchors(client(params, initial=params).init(load(params)))[0]
    strengths = by_path(mx.strengths(mx.presets.octo(), params, 2.0))
    held = [path for path, lam in strengths.items() if lam and not any(part in path for part in UNLOADED)]
    assert list(by_path(state.anchor)) == held
    np.testing.assert_allclose(state.strength, [strengths[path] for path in held], rtol=1e-6)


def test_freed_leaves_train_as_with_octos_own_optimizer_and_the_others_as_without_the_hook() -> None:
    params, options = standin.octo_params(), {"grad_accumulation_steps": 2, "frozen_keys": T5}
    loaded = load(params)
    own = standin.create_optimizer(params, **ADAMW, **options)[0]
    optimizers = (client(params, initial=params, **options), client(params, **options), own)
    freed, whole, bare = (by_path(standin.train(tx, loaded, gradient).params) for tx in optimizers)
    for path, leaf in freed.items():
        unloaded = any(part in path for part in UNLOADED)
        np.testing.assert_allclose(leaf, (bare if unloaded else whole)[path], rtol=0, atol=1e-6)
    assert {path.split("/")[-2] for path in freed if np.abs(whole[path] - bare[path]).max() > 1e-3} >= {"StdConv_0"}


def test_a_loader_may_change_the_tree_in_place_as_octos_loader_for_t5_does() -> None:
    params = standin.octo_params()
    tx = client(params, initial=params)
    t5 = "octo_transformer/task_tokenizers_language/hf_model/"
    tokenizer = params["octo_transformer"]["task_tokenizers_language"]
    tokenizer["hf_model"] = jax.tree_util.tree_map(np.negative, tokenizer["hf_model"])
    anchor = by_path(standin.anchors(tx.init(params))[0].anchor)
    assert sorted(anchor) == sorted(path for path in by_path(params) if path.startswith(t5))


def test_a_restored_state_is_continued_by_an_optimizer_whose_init_saw_other_weights() -> None:
    params = standin.octo_params()
    run = standin.train(client(params, initial=params), load(params), gradient)
    resumed = client(params, initial=params)
    resumed.init(standin.octo_params(seed=2))
    grads = gradient(run.params, 8)
    equal(
        resumed.update(grads, run.opt_state, run.params),
        client(params, initial=params).update(grads, run.opt_state, run.params),
    )


def test_where_all_is_loaded_the_hook_changes_nothing() -> None:
    params, loaded = standin.octo_params(), standin.octo_params(seed=1)
    tx, hooked = client(params, **OPTIONS["all"]), client(params, initial=params, **OPTIONS["all"])
    equal(standin.train(hooked, loaded, gradient, 4), standin.train(tx, loaded, gradient, 4))


@pytest.mark.skipif(not hasattr(optax, "tree_utils"), reason="this optax has no tree_utils")
def test_tree_map_params_which_calls_init_without_a_leaf_passes_the_hook() -> None:
    params = standin.octo_params()
    tx = client(params, initial=params)
    state = tx.init(load(params))
    doubled = optax.tree_utils.tree_map_params(tx, lambda leaf: 2 * leaf, state)
    equal(
        standin.anchors(doubled)[0].anchor,
        jax.tree_util.tree_map(lambda leaf: 2 * leaf, standin.anchors(state)[0].anchor),
    )


def test_the_hook_refuses_an_init_that_finds_nothing_loaded() -> None:
    params = standin.octo_params()
    with pytest.raises(ValueError, match=r"no trainable leaf differs from initial, .*load pretrained weights into"):
        client(params, initial=params).init(params)
    frozen = client(params, initial=params, frozen_keys=("octo_transformer.*",))
    with pytest.raises(ValueError, match=r"no trainable leaf differs"):
        frozen.init(load(params))


@pytest.mark.parametrize("transform", [jax.jit, lambda init: lambda params: jax.eval_shape(init, params)])
def test_the_hook_refuses_an_init_without_values(transform: Any) -> None:
    params = standin.octo_params()
    transform(client(params).init)(params)
    with pytest.raises(ValueError, match=r"leaf 'heads_action/mean_proj/kernel' has none here; .*call tx.init eagerly"):
        transform(client(params, initial=params).init)(load(params))


def test_the_hook_refuses_an_initial_that_cannot_be_compared() -> None:
    params = standin.octo_params()
    shapes = jax.tree_util.tree_map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    with pytest.raises(ValueError, match=r"'heads_action/mean_proj/kernel' has none here; give arrays"):
        client(params, initial=shapes)
    with pytest.raises(ValueError, match=r"params or initial lacks leaf 'heads_action/mean_proj/kernel'"):
        client(params, initial={"params": params})
    with pytest.raises(ValueError, match=r"initial needs layers to be an mx.LayerStack"):
        client(params, initial=params, layers=lambda params: params)


@pytest.mark.parametrize("hook", [False, True])
def test_options_are_checked_before_octo_builds_anything(hook: bool) -> None:
    params = standin.octo_params()
    initial = params if hook else None
    with pytest.raises(ValueError, match=r"lambda_max is -1.0; it must be finite and not negative"):
        client(params, -1.0, initial=initial)
    with pytest.raises(ValueError, match=r"max_pull is -1"):
        client(params, initial=initial, max_pull=-1)
    with pytest.raises(ValueError, match=r"train_utils has no create_optimizer; give Octo's module octo.utils"):
        octo.create_optimizer(optax, params, lambda_max=1.0, initial=initial, **ADAMW)


def test_leaves_that_are_free_because_no_loader_filled_them_are_counted_in_the_log_by_module(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Not the head, which the stack frees anyway."""
    params = standin.octo_params()
    client(params, initial=params).init(load(params))
    assert caplog.messages == ["leaves without λ, because they equal initial: 1 of 4 in vision, 2 of 4 in transformer"]
    caplog.clear()
    client(params, initial=params).init(with_leaves(standin.octo_params(seed=1), params, "heads_action"))
    assert not caplog.messages
