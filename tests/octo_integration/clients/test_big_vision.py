"""The big_vision client, against a stand-in with the form of big_vision's factory and of its train step."""

import functools
import json
import os
import re
import subprocess
import sys
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import maps_optax as mx
from octo_integration.clients import big_vision
from tests.octo_integration.clients.big_vision_stand_in import (
    BLOCKS,
    FORMS,
    FROZEN,
    KINDS,
    LR,
    ROOT,
    SCHEDULE,
    STACK,
    STEPS,
    WARMUP,
    Config,
    adamw,
    apart,
    build,
    bv_optax,
    by_path,
    close,
    config,
    factory,
    loaded,
    random_init,
    rate,
    spd_state,
    train,
    trained_by_hand,
    tree_map,
)


@functools.cache
def standard(form: str, kind: str) -> Any:
    return train(build(form, kind), kind)


@functools.cache
def without_maps(kind: str) -> Any:
    return train(factory(kind), kind, anchored=False)[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_steps_as_a_hand_written_chain_of_adamw_and_maps_through_a_warmup_that_starts_at_rate_0(
    form: str, kind: str
) -> None:
    params, state = standard(form, kind)
    reference, reference_state = trained_by_hand(kind, [FROZEN, (".*", adamw())])
    close(params, reference)
    np.testing.assert_array_equal(spd_state(state).triggered, spd_state(reference_state).triggered)
    assert float(spd_state(state).triggered.mean()) > 0.5
    assert apart(params, without_maps(kind)) > 1e-2, "MAPS did nothing"


@pytest.mark.parametrize("kind", KINDS)
def test_make_is_exact_with_lr_mults_and_a_schedule_for_each_pattern(kind: str) -> None:
    schedules = [("txt/.*", None), ("img/embedding/.*", {"warmup_steps": 1}), (".*", SCHEDULE)]
    mults = [("img/Transformer/.*", 0.25)]
    params, _ = train(build("make", kind, schedule=schedules, lr_mults=mults), kind)
    by_pattern = [("img/embedding/.*", adamw(warmup_steps=1)), ("img/Transformer/.*", adamw(0.25)), (".*", adamw())]
    close(params, trained_by_hand(kind, [FROZEN, *by_pattern])[0])


def test_make_is_exact_behind_another_optimizer_of_the_factory() -> None:
    params, _ = train(build("make", "numbered", optax_name="scale_by_lion", wd=0.0), "numbered")
    lion = optax.lion(rate(STEPS, base=LR, warmup_steps=WARMUP), weight_decay=0.0)
    close(params, trained_by_hand("numbered", [FROZEN, (".*", lion)])[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_a_frozen_subtree_stays_to_the_bit_and_keeps_no_anchor(form: str, kind: str) -> None:
    maps = {"free": ["classifier/"], "anchor_dtype": "bfloat16"}  # to which frozen weights would be pulled, if held
    params, state = train(build(form, kind, maps), kind)
    np.testing.assert_array_equal(params["txt"]["kernel"], loaded(kind)["txt"]["kernel"])
    assert isinstance(spd_state(state).anchor["txt"]["kernel"], optax.MaskedNode)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_free_leaves_follow_the_factory_alone_to_the_bit(form: str, kind: str) -> None:
    params, _ = standard(form, kind)
    close(params["classifier"], without_maps(kind)["classifier"], atol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_set_anchor_after_loading_makes_the_loaded_weights_theta_0(form: str, kind: str) -> None:
    params, state = standard(form, kind)
    anchor, weights = spd_state(state).anchor, loaded(kind)
    np.testing.assert_array_equal(anchor["img"]["embedding"]["kernel"], weights["img"]["embedding"]["kernel"])
    moved = float(jnp.linalg.norm(params["img"]["embedding"]["kernel"] - weights["img"]["embedding"]["kernel"]))
    assert mx.metrics(state)["drift/img/embedding/kernel"].item() == pytest.approx(moved, rel=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_without_set_anchor_the_drift_shows_the_distance_to_the_random_initialisation(form: str) -> None:
    tx = build(form, "numbered")
    drift = mx.metrics(standard(form, "numbered")[1])["drift"]
    forgotten = mx.metrics(train(tx, "numbered", anchored=False)[1])["drift"]
    between = tree_map(jnp.subtract, loaded("numbered")["img"], random_init("numbered")["img"])
    distance = jnp.sqrt(sum(jnp.sum(x * x) for x in jax.tree_util.tree_leaves(between)))
    assert float(drift) < 0.25 * float(distance) < float(forgotten)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_strengths_fall_with_the_block_number_read_as_an_integer(form: str, kind: str) -> None:
    _, state = standard(form, kind)
    strengths = mx.metrics(state, STACK, strength=True)
    names = range(4) if kind == "scanned" else BLOCKS
    found = [float(strengths[f"strength/siglip/{block}"]) for block in names]
    np.testing.assert_allclose(found, [1.5, 1.5 * 3 / 4, 1.5 * 2 / 4, 1.5 / 4], rtol=1e-6)  # the bridge, last, is free
    assert "strength/bridge" not in strengths


def test_make_without_config_maps_is_the_factory() -> None:
    given = Config({key: value for key, value in config("make").items() if key != "maps"})
    tx, _ = big_vision.make(bv_optax, given, loaded("numbered"), sched_kw={"total_steps": STEPS})
    params, _ = train(tx, "numbered", anchored=False)
    close(params, without_maps("numbered"), atol=0)


def test_make_also_returns_the_factory_s_schedules() -> None:
    _, schedules = big_vision.make(bv_optax, config("make"), loaded("numbered"), sched_kw={"total_steps": STEPS})
    assert [float(schedule(WARMUP)) for schedule in schedules] == [1 - WARMUP / (2 * STEPS)]


def test_make_frees_a_frozen_scanned_tower_and_still_counts_its_blocks() -> None:
    frozen = [("img/Transformer/.*", None), ("txt/.*", None), (".*", SCHEDULE)]
    layers = [("tower", [("img/Transformer/encoderblock/", "stacked")]), ("rest", [("img/", "first")])]
    maps = {"layers": [*layers, ("last", [("classifier/", "first")])], "free": ["txt/"]}
    params, state = train(build("make", "scanned", maps, schedule=frozen), "scanned")
    close(params["img"]["Transformer"], loaded("scanned")["img"]["Transformer"], atol=0)
    # |L| = 6: four blocks, then what is held, then the classifier
    np.testing.assert_allclose(spd_state(state).strength, 1.5 / 5, rtol=1e-6)


def test_the_optax_name_refuses_a_frozen_scanned_tower_whose_depth_it_cannot_see() -> None:
    tx = build("optax_name", "scanned", schedule=[("(img/Transformer|txt)/.*", None), (".*", SCHEDULE)])
    with pytest.raises(ValueError, match=one_line("every leaf that stacks the blocks of 'siglip' is masked out")):
        tx.init(loaded("scanned"))


@pytest.mark.parametrize("form", FORMS)
def test_layers_as_pairs_which_a_json_config_can_hold_make_the_same_stack(form: str) -> None:
    pairs = json.loads(json.dumps([(module, list(rules.items())) for module, rules in STACK.modules.items()]))
    pairs[0][1] = [rule for rule in pairs[0][1] if rule[1] != "stacked"]  # which this tree has not
    given, _ = train(build(form, "numbered", {"layers": pairs}), "numbered")
    close(given, standard(form, "numbered")[0], atol=0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "maps, message",
    [
        ({"layers": "gemma"}, "layers is 'gemma'; the presets are octo, openpi, paligemma, prismatic, vla."),
        ({"layers": {"tower": {"img/": "first"}}}, "layers is a mapping, whose order a config does not keep"),
        ({"free": ["txt/"]}, "no rule of the LayerStack matches leaf 'classifier/bias', 'classifier/kernel'"),
        ({"free": ["classifier/", "txt/", "text/"]}, "rule 'text/' of the LayerStack matches no leaf"),
        ({"lambda_max": -1.0}, "lambda_max is -1.0"),
    ],
)
def test_what_is_wrong_in_the_config_is_said_in_one_line(form: str, maps: Any, message: str) -> None:
    with pytest.raises(ValueError, match=one_line(message)):
        build(form, "numbered", maps).init(loaded("numbered"))


def one_line(start: str) -> str:
    return "^[^\n]*" + re.escape(start) + "[^\n]*$"


def adam_alone(learning_rate: Any, **options: Any) -> Any:
    return big_vision.maps_adam(learning_rate, 1.5, STACK, **options)


def test_adam_s_direction_passes_to_the_bit_where_the_learning_rate_is_0_and_in_free_leaves() -> None:
    theta0 = loaded("numbered")
    params = tree_map(lambda x: x + 0.1, theta0)
    grads = tree_map(lambda x: 0.3 + 0 * x, params)  # back towards θ0
    direction, _ = optax.scale_by_adam().update(grads, optax.scale_by_adam().init(params))
    for learning_rate, held in ((0.0, False), (1.0, True)):
        tx = adam_alone(lambda _, now=learning_rate: now)
        returned, _ = tx.update(grads, mx.set_anchor(tx.init(params), theta0), params)
        assert (apart(returned["img"], direction["img"]) > 0) == held
        close(returned["classifier"], direction["classifier"], atol=0)


def test_a_learning_rate_given_as_a_dict_goes_to_big_vision_s_own_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    utils = types.ModuleType("big_vision.utils")
    utils.create_learning_rate_schedule = rate  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "big_vision.utils", utils)
    given = {"learning_rate": {"base": LR, "total_steps": STEPS, **SCHEDULE}}
    params, _ = train(build("optax_name", "numbered", given), "numbered")
    close(params, standard("optax_name", "numbered")[0], atol=0)


@pytest.mark.parametrize("learning_rate", [0, -1e-3, float("nan")])
def test_a_learning_rate_that_is_not_positive_is_refused(learning_rate: float) -> None:
    with pytest.raises(
        ValueError, match=one_line(f"maps_adam: learning_rate is {learning_rate}; it must be positive.")
    ):
        adam_alone(learning_rate)


def test_update_without_params_says_what_to_call() -> None:
    tx, params = adam_alone(LR), loaded("numbered")
    with pytest.raises(ValueError, match=one_line("call tx.update(grads, opt_state, params)")):
        tx.update(params, tx.init(params))


@pytest.mark.parametrize("kind", KINDS)
def test_check_passes_where_the_config_tells_the_factory_s_learning_rate(kind: str) -> None:
    big_vision.check(standard("optax_name", kind)[1])


def test_check_is_not_misled_by_the_rounding_of_tiny_steps() -> None:
    tiny = {"learning_rate": rate(STEPS, base=1e-6, warmup_steps=WARMUP), "weight_decay": 0.0}
    tx = build("optax_name", "numbered", tiny, lr=1e-6, wd=0.0)
    big_vision.check(train(tx, "numbered")[1])


@pytest.mark.parametrize(
    "told",
    [
        pytest.param({"learning_rate": rate(STEPS, 2 * LR, WARMUP)}, id="twice the rate"),
        pytest.param({"learning_rate": rate(STEPS, 1.1 * LR, WARMUP)}, id="a tenth more"),
        pytest.param({"learning_rate": LR}, id="no warm-up"),
        pytest.param({"learning_rate": rate(STEPS, LR, WARMUP + 2)}, id="a longer warm-up"),
        pytest.param({"learning_rate": lambda t: jnp.where(t < 2, 0.0, LR)}, id="a step planned to be 0 that is not"),
        pytest.param({"weight_decay": 0.0}, id="no weight decay"),
    ],
)
def test_check_finds_a_step_that_is_not_the_factory_s(told: Any) -> None:
    with pytest.raises(ValueError, match=one_line("of a step away from where maps_adam planned")):
        big_vision.check(train(build("optax_name", "numbered", told), "numbered")[1])


def test_check_finds_lr_mults_which_only_make_can_follow() -> None:
    tx = build("optax_name", "numbered", lr_mults=[("img/embedding/.*", 0.1)])
    with pytest.raises(ValueError, match=one_line("or use make")):
        big_vision.check(train(tx, "numbered")[1])


@pytest.mark.parametrize("steps", [1, STEPS])
def test_check_finds_a_forgotten_set_anchor_from_the_first_step_on(steps: int) -> None:
    tx = build("optax_name", "numbered")
    with pytest.raises(ValueError, match=one_line("call mx.set_anchor(opt_state, params)")):
        big_vision.check(train(tx, "numbered", anchored=False, steps=steps)[1])


def test_check_of_a_state_without_maps_adam_is_an_error() -> None:
    with pytest.raises(ValueError, match=one_line("holds no MapsAdamState")):
        big_vision.check(standard("make", "numbered")[1])


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("form, kind", [*zip(FORMS, KINDS)])
def test_check_anchor_passes_before_the_first_step_and_after_resuming(form: str, kind: str, dtype: Any) -> None:
    tx = build(form, kind, {"anchor_dtype": dtype})
    big_vision.check_anchor(mx.set_anchor(tx.init(random_init(kind)), loaded(kind)), loaded(kind))
    params, state = train(tx, kind, steps=2)
    big_vision.check_anchor(state, params)


@pytest.mark.parametrize("form", FORMS)
def test_check_anchor_finds_a_forgotten_set_anchor_before_the_first_step(form: str) -> None:
    state = jax.jit(build(form, "numbered").init)(random_init("numbered"))
    with pytest.raises(ValueError, match=one_line("leaf 'img/Transformer/encoderblock_0/kernel' differs; after")):
        big_vision.check_anchor(state, loaded("numbered"))


@pytest.mark.parametrize("form", FORMS)
def test_check_anchor_finds_a_set_anchor_where_a_run_resumes(form: str) -> None:
    params, state = train(build(form, "numbered"), "numbered", steps=2)
    with pytest.raises(ValueError, match=one_line("θ0 was set anew after 2 steps; call mx.set_anchor only where")):
        big_vision.check_anchor(mx.set_anchor(state, params), params)


@pytest.mark.parametrize("form", FORMS)
def test_check_anchor_has_nothing_to_say_of_a_run_that_holds_nothing(form: str) -> None:
    params, state = train(build(form, "numbered", {"lambda_max": 0.0}), "numbered", steps=2)
    big_vision.check_anchor(state, params)


def test_check_anchor_of_a_state_without_maps_is_an_error() -> None:
    with pytest.raises(ValueError, match=one_line("check_anchor: this optimizer state holds no MAPS")):
        big_vision.check_anchor(factory("numbered").init(loaded("numbered")), loaded("numbered"))


@pytest.fixture(scope="module")
def four_devices() -> dict[str, Any]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    env["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
    command = [sys.executable, "-m", "tests.octo_integration.clients.big_vision_stand_in"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("form, kind", [*zip(FORMS, KINDS)])
def test_set_anchor_and_training_on_four_devices_with_a_donated_state_give_one_device_s_numbers(
    form: str, kind: str, four_devices: dict[str, Any]
) -> None:
    case = four_devices[form]
    for there, here in zip(case["params"], jax.tree_util.tree_leaves(standard(form, kind)[0])):
        np.testing.assert_allclose(np.array(there), here, rtol=0, atol=1e-5)
    assert (case["devices"], case["split"], case["anchor as its parameter"]) == (4, True, True)


def test_the_documented_pattern_frees_a_new_head_and_never_paligemma_s_bridge_img_head() -> None:
    patterns = set(re.findall(r'free=\["(.+?)"\]', f"{big_vision.make.__doc__} {big_vision.maps_adam.__doc__}"))
    assert len(patterns) == 1
    weight = np.zeros((2, 2))
    img = {"embedding": {"kernel": weight}, "head": {"kernel": weight}}
    params = {"img": img, "llm": {"embedder": {"w": weight}, "final_norm": {"w": weight}}, "head": {"kernel": weight}}
    given = config("make", {"free": patterns}, schedule=SCHEDULE)
    tx, _ = big_vision.make(bv_optax, given, params, sched_kw={"total_steps": STEPS})
    assert list(by_path(spd_state(tx.init(params)).anchor)) == ["img/embedding/kernel", "img/head/kernel"]  # λ > 0
