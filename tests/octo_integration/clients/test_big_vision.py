"""The big_vision client, against a stand-in with the form of big_vision's factory and of its train step."""

import functools
import json
import operator
import os
import re
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import maps_optax as mx
from octo_integration.clients import big_vision

ROOT = Path(__file__).parents[3]
STEPS = 12
BLOCKS = (0, 1, 2, 10)  # read as text, 10 would come before 2
LR, WD, WARMUP = 0.02, 0.004, 3
SCHEDULE = {"warmup_steps": WARMUP}
FORMS = ("make", "optax_name")
KINDS = ("numbered", "scanned")
tree_map = jax.tree_util.tree_map


class Config(dict[str, Any]):
    """As much of ml_collections.ConfigDict as a factory reads."""

    __getattr__ = dict.__getitem__


def by_path(tree: Any) -> dict[str, Any]:
    pairs = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {"/".join(key.key for key in keys): leaf for keys, leaf in pairs}


def rate(total_steps: int, base: float = 1.0, warmup_steps: int = 0) -> Callable[[Any], Any]:
    """Rises from 0, then falls."""
    return lambda t: base * jnp.minimum(1, t / warmup_steps) * (1 - t / (2 * total_steps))


def first_match(params: Any, patterns: Any) -> Any:
    """Of each leaf, the number of the first pattern that is its whole path, or −1."""
    paths = by_path(params)
    numbers = [next((i for i, p in enumerate(patterns) if re.fullmatch(p, path)), -1) for path in paths]
    return jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(params), numbers)


def frozen_leaves(schedule: Any, params: Any) -> Any:
    pairs = schedule if isinstance(schedule, (list, tuple)) else [(".*", schedule)]
    return tree_map(lambda i: pairs[i][1] is None, first_match(params, [p for p, _ in pairs]))


def per_pattern(pairs: Any, params: Any, make: Callable[[Any], Any]) -> list[Any]:
    groups = first_match(params, [p for p, _ in pairs])
    return [optax.masked(make(value), tree_map(lambda g, i=i: g == i, groups)) for i, (_, value) in enumerate(pairs)]


def factory_make(config: Any, params: Any, *, sched_kw: Any) -> Any:
    schedule = config.get("schedule", {})
    pairs = schedule if isinstance(schedule, (list, tuple)) else [(".*", schedule)]
    frozen = frozen_leaves(schedule, params)
    optimizer = operator.attrgetter(config.optax_name)(optax)(**config.get("optax", {}))
    functions = [rate(**sched_kw, **s) for _, s in pairs if s is not None]
    live = iter(functions)
    members = [optax.masked(optimizer, tree_map(operator.not_, frozen)), optax.scale(config.lr)]
    members += per_pattern(config.get("lr_mults", []), params, optax.scale)
    if config.get("wd"):
        members += per_pattern(
            config.get("wd_mults", [(".*/kernel$", 1.0)]), params, lambda m: optax.add_decayed_weights(config.wd * m)
        )
    members += per_pattern(
        pairs, params, lambda s: optax.set_to_zero() if s is None else optax.scale_by_schedule(next(live))
    )
    return optax.chain(*members, optax.scale(-1.0)), functions


def replace_frozen(schedule: Any, tree: Any, replacement: Any) -> Any:
    return tree_map(lambda leaf, f: replacement if f else leaf, tree, frozen_leaves(schedule, tree))


bv_optax = types.SimpleNamespace(make=factory_make, replace_frozen=replace_frozen)


def weights(kind: str, seed: int) -> Any:
    """A tower of four blocks and its projection, a new head, and another tower."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> Any:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    stacked = {"encoderblock": {"kernel": normal(len(BLOCKS), 3, 4)}}
    numbered = {f"encoderblock_{i}": {"kernel": normal(3, 4)} for i in BLOCKS}
    return {
        "img": {
            "embedding": {"kernel": normal(3, 4), "bias": normal(4)},
            "Transformer": stacked if kind == "scanned" else numbered,
            "head": {"kernel": normal(4, 4)},
        },
        "classifier": {"kernel": normal(4, 4), "bias": normal(4)},
        "txt": {"kernel": normal(4, 4)},
    }


def random_init(kind: str) -> Any:
    return weights(kind, 0)


def loaded(kind: str) -> Any:
    return weights(kind, 1)


def gradient(params: Any, t: Any) -> Any:
    """Away from where it is for some steps, then back, so that it triggers; of a different size in each leaf."""
    sign = jnp.where(t < 7, -1.0, 0.4)
    return tree_map(lambda x: (sign * x + 0.01 * (t + 1)) / x.size, params)


def train(tx: Any, kind: str, *, anchored: bool = True, init: Any = None, start: Any = None, steps: int = STEPS) -> Any:
    """As big_vision trains: `init` under jit on random weights, then loading, then donating steps."""
    opt = jax.jit(tx.init)(random_init(kind) if init is None else init)
    params = tree_map(jnp.array, loaded(kind) if start is None else start)
    state = {"params": params, "opt": mx.set_anchor(opt, params) if anchored else opt}

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: Any, t: Any) -> Any:
        updates, opt = tx.update(gradient(state["params"], t), state["opt"], state["params"])
        return {"params": optax.apply_updates(state["params"], updates), "opt": opt}

    for t in range(steps):
        state = step(state, t)
    return state["params"], state["opt"]


def config(form: str, maps: Any = (), **changes: Any) -> Config:
    maps = {"lambda_max": 1.5, "free": ["classifier/", "txt/"], **dict(maps)}
    common = {"lr": LR, "wd": WD, "schedule": [("txt/.*", None), (".*", SCHEDULE)]}
    if form == "make":
        return Config({**common, "optax_name": "scale_by_adam", "maps": maps, **changes})
    foreseen = {"learning_rate": rate(STEPS, base=LR, warmup_steps=WARMUP), "weight_decay": WD / LR}
    return Config({**common, "optax_name": "maps_optax.adam", "optax": {**foreseen, **maps}, **changes})


def build(form: str, kind: str, maps: Any = (), **changes: Any) -> Any:
    shapes = jax.eval_shape(lambda: loaded(kind))
    return big_vision.make(bv_optax, config(form, maps, **changes), shapes, sched_kw={"total_steps": STEPS})[0]


def factory(kind: str, **changes: Any) -> Any:
    return factory_make(config("make", **changes), loaded(kind), sched_kw={"total_steps": STEPS})[0]


def kernels(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def adamw(mult: float = 1.0, warmup_steps: int = WARMUP) -> Any:
    """The factory's step as Optax's own AdamW makes it: weight decay is not multiplied by lr nor by lr_mults."""
    return optax.adamw(rate(STEPS, LR * mult, warmup_steps), weight_decay=WD / (LR * mult), mask=kernels)


FROZEN = ("txt/.*", optax.set_to_zero())
STACK = mx.LayerStack(
    {
        "siglip": {
            r"img/embedding/": "first",
            r"img/Transformer/encoderblock_(\d+)/": "block",
            r"img/Transformer/encoderblock/": "stacked",
        },
        "bridge": {r"img/head/": "first"},
    },
    free=["classifier/", "txt/"],
    optional=[r"img/Transformer/encoderblock_(\d+)/", r"img/Transformer/encoderblock/"],
)


def by_hand(kind: str, groups: Any) -> Any:
    """`groups`: (pattern, transformation) pairs, first match wins; MAPS behind them all, on the whole tree."""
    labels = tree_map(str, first_match(loaded(kind), [p for p, _ in groups]))
    step = optax.multi_transform({str(i): tx for i, (_, tx) in enumerate(groups)}, labels)
    return mx.chain(step, mx.maps(STACK, 1.5))


def trained_by_hand(kind: str, groups: Any) -> Any:
    """Without any late loading: initialised on the weights that training starts from."""
    return train(by_hand(kind, groups), kind, anchored=False, init=loaded(kind))


def spd_state(opt_state: Any) -> mx.SPDState:
    nodes = jax.tree_util.tree_leaves(opt_state, is_leaf=lambda node: isinstance(node, mx.SPDState))
    (state,) = [node for node in nodes if isinstance(node, mx.SPDState)]
    return state


def close(a: Any, b: Any, atol: float = 2e-6) -> None:
    tree_map(functools.partial(np.testing.assert_allclose, rtol=0, atol=atol), a, b)


def apart(a: Any, b: Any) -> float:
    return max(float(jnp.abs(x - y).max()) for x, y in zip(*map(jax.tree_util.tree_leaves, (a, b))))


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


def sharded_case(form: str, kind: str) -> dict[str, Any]:
    """Trains on four devices as big_vision does, with the state's shardings inferred from its leaves' shapes."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("fsdp",))

    def place(leaf: Any) -> Any:
        split = leaf.ndim >= 2 and leaf.shape[-1] % 4 == 0
        spec = [None] * (leaf.ndim - 1) + ["fsdp"] if split else []
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))

    tx, shapes = build(form, kind), jax.eval_shape(lambda: loaded(kind))
    placed = tree_map(place, {"params": shapes, "opt": jax.eval_shape(tx.init, shapes)})
    params = jax.jit(lambda: random_init(kind), out_shardings=placed["params"])()
    opt = jax.jit(tx.init, out_shardings=placed["opt"])(params)
    params = jax.device_put(loaded(kind), placed["params"])
    state = {"params": params, "opt": mx.set_anchor(opt, params)}
    big_vision.check_anchor(state["opt"], state["params"])

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=placed)
    def step(state: Any, t: Any) -> Any:
        updates, opt = tx.update(gradient(state["params"], t), state["opt"], state["params"])
        return {"params": optax.apply_updates(state["params"], updates), "opt": opt}

    for t in range(STEPS):
        state = step(state, t)
    kernel, anchor = (tree["img"]["embedding"]["kernel"] for tree in (state["params"], spd_state(state["opt"]).anchor))
    return {
        "params": [leaf.tolist() for leaf in jax.tree_util.tree_leaves(state["params"])],
        "devices": len(kernel.sharding.device_set),
        "split": not kernel.sharding.is_fully_replicated,
        "anchor as its parameter": anchor.sharding == kernel.sharding,
    }


@pytest.fixture(scope="module")
def four_devices() -> dict[str, Any]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    env["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, env=env, timeout=600)
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


if __name__ == "__main__":
    print(json.dumps({form: sharded_case(form, kind) for form, kind in zip(FORMS, KINDS)}))


def test_the_documented_pattern_frees_a_new_head_and_never_paligemma_s_bridge_img_head() -> None:
    patterns = set(re.findall(r'free=\["(.+?)"\]', f"{big_vision.make.__doc__} {big_vision.maps_adam.__doc__}"))
    assert len(patterns) == 1
    weight = np.zeros((2, 2))
    img = {"embedding": {"kernel": weight}, "head": {"kernel": weight}}
    params = {"img": img, "llm": {"embedder": {"w": weight}, "final_norm": {"w": weight}}, "head": {"kernel": weight}}
    given = config("make", {"free": patterns}, schedule=SCHEDULE)
    tx, _ = big_vision.make(bv_optax, given, params, sched_kw={"total_steps": STEPS})
    assert list(by_path(spd_state(tx.init(params)).anchor)) == ["img/embedding/kernel", "img/head/kernel"]  # λ > 0
