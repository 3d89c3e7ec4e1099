"""The one program, on windows of noise."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import maps_optax as mx
from benchmarks.generalization.data import Windows, first_episodes, task_of
from benchmarks.generalization.evaluate import constant_chunks, drift, per_episode
from benchmarks.generalization.methods import VISION, Derived, Point
from benchmarks.generalization.prices import pricing_of
from benchmarks.generalization.train import Program, batches, fine_tune, inputs_of, knobs_of, observe, program_of
from benchmarks.generalization.worker import initial, merge
from octo_integration.model.sizes import CONFIGS
from octo_integration.model.vla import VLA
from octo_integration.simulators.metaworld.tasks import TASKS

COUNT, STEPS, LR = 40, 10, 1e-3


@pytest.fixture(scope="module")
def windows():
    rng = np.random.default_rng(0)
    return Windows(
        image=rng.integers(0, 256, (COUNT, 64, 64, 3), dtype=np.uint8),
        text=np.arange(COUNT, dtype=np.int32) % 2,
        texts=np.array(["open the faucet", "close the faucet"]),
        action=rng.standard_normal((COUNT, 8, 4)).astype(np.float32),
        mask=np.ones((COUNT, 8, 4), bool),
        episode=np.arange(COUNT, dtype=np.int32) // 10,
        task=np.arange(COUNT, dtype=np.int32) // 10 % 2,
        tasks=np.array(["faucet-close", "faucet-open"]),
    )


@pytest.fixture(scope="module")
def theta0():
    return initial(Program(), None, 0)


def run(point, windows, theta0, steps=STEPS):
    knobs = knobs_of(point, theta0, LR, steps)
    order = batches(windows.task, steps, seed=0)
    return fine_tune(program_of(point), theta0, knobs, inputs_of(windows, point.blind), order)


def test_strengths_follow_the_prices_of_the_modules(windows, theta0):
    point = Point("x", "", lambda_max=2.0, schedule="constant", price_share=1e9, price_every=10)
    knobs, order = knobs_of(point, theta0, LR, 20), batches(windows.task, 30, seed=0)
    inputs, rule = inputs_of(windows, False), pricing_of(point, theta0)
    result = fine_tune(program_of(point), theta0, knobs, inputs, order, rule)
    assert [(m.step, m.strength) for m in result.moments] == [(10, (3.0,) * 4), (20, (4.5,) * 4)]
    plain = fine_tune(program_of(point), theta0, knobs, inputs, order)
    assert moved(result, theta0)["language"] < moved(plain, theta0)["language"]
    never = fine_tune(program_of(point), theta0, knobs, inputs, order, rule._replace(every=40))
    jax.tree.map(np.testing.assert_array_equal, never.params, plain.params)


def moved(result, theta0):
    found = drift(result.params, theta0)[0]
    return {name: sum(v for layer, v in found.items() if layer.startswith(name)) for name in (*VISION, "language")}


def test_methods_do_to_the_layers_what_they_say(windows, theta0):
    adam = moved(run(Point("adam", ""), windows, theta0), theta0)
    frozen = moved(run(Point("x", "", frozen=VISION), windows, theta0), theta0)
    assert frozen["dinov2"] == frozen["siglip"] == 0 and frozen["language"] > 0.5 * adam["language"]
    slow = moved(run(Point("x", "", backbone=0.1), windows, theta0), theta0)
    assert slow["dinov2"] == pytest.approx(0.1 * adam["dinov2"], rel=0.3)
    falling = moved(run(Point("x", "", layer_decay=0.7), windows, theta0), theta0)
    assert falling["dinov2"] < 0.1 * adam["dinov2"] and falling["language"] > 0.4 * adam["language"]
    linear = moved(run(Point("x", "", lambda_max=2.0), windows, theta0), theta0)
    assert linear["dinov2"] < 0.7 * adam["dinov2"]
    backwards = moved(run(Point("x", "", lambda_max=2.0, order="reversed"), windows, theta0), theta0)
    assert backwards["language"] < linear["language"]
    tied = moved(run(Point("x", "", l2=1.0), windows, theta0), theta0)
    assert all(tied[name] < 0.5 * adam[name] for name in tied)


def test_a_model_of_one_tower_is_fine_tuned_by_the_same_program(windows):
    start = initial(Program("tiny_clip"), None, 0)

    def clip(**options):
        end = run(Point("x", "", model="tiny_clip", **options), windows, start)
        return sum(v for layer, v in drift(end.params, start)[0].items() if layer.startswith("clip"))

    adam = clip()
    assert clip(frozen=("clip",)) == 0 and 0 < clip(lambda_max=2.0) < 0.7 * adam


def test_the_same_seed_gives_the_same_weights_and_the_average_lies_between(windows, theta0):
    one, two = (run(Point("adam", ""), windows, theta0) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, one.params, two.params)
    far, near = (sum(drift(p, theta0)[0].values()) for p in (one.params, one.average))
    assert 0 < near < far and np.isfinite(one.loss)


@pytest.mark.parametrize(
    ("point", "hold"),
    [(Point("adam", ""), optax.identity()), (Point("x", "", lambda_max=2.0), mx.maps(mx.presets.vla(), 2.0))],
    ids=["adam", "linear"],
)
def test_it_is_what_the_library_does_on_its_own(point, hold, windows, theta0):
    """Against a loop of our own: the program's other members do nothing where they are switched off."""
    inputs = jax.device_put(inputs_of(windows, False))

    def rate(count):
        warm = jnp.minimum(1.0, (count + 1) / (0.1 * STEPS))
        return LR * warm * (0.55 + 0.45 * jnp.cos(np.pi * count / STEPS))

    tx = mx.chain(optax.clip_by_global_norm(1.0), optax.adam(rate), hold)

    @jax.jit
    def step(params, state, rows):
        def loss(params):
            observation, task = observe(inputs, rows)
            batch = {"observation": observation, "task": task, "action": inputs.action[rows]}
            batch["action_pad_mask"] = inputs.mask[rows]
            return VLA(CONFIGS["tiny"]).apply({"params": params}, batch, jax.random.key(0), method="loss")[0]

        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    params, state = theta0, tx.init(theta0)
    for rows in batches(windows.task, 3, 0):
        params, state = step(params, state, rows)
    knobs = knobs_of(point, theta0, LR, STEPS)
    result = fine_tune(program_of(point), theta0, knobs, inputs, batches(windows.task, 3, 0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), result.params, params)
    assert result.losses == pytest.approx([result.loss])  # one chunk of three steps


def test_blind_runs_do_not_hang_on_the_images(windows, theta0):
    other = windows._replace(image=windows.image[::-1])
    blind = Point("blind", "", blind=True)
    a, b = (run(blind, w, theta0) for w in (windows, other))
    jax.tree.map(np.testing.assert_array_equal, a.params, b.params)


def test_merges(theta0):
    end = jax.tree.map(lambda x: x + 1, theta0)
    half = merge(Derived("wise-ft", "", 0.5, 0.5), theta0, end)
    towers = merge(Derived("wise-ft-vision", "", 0.0, 0.0, VISION), theta0, end)
    np.testing.assert_allclose(half["language"]["norm"]["scale"], theta0["language"]["norm"]["scale"] + 0.5)
    np.testing.assert_array_equal(half["action_head"]["out"]["bias"], end["action_head"]["out"]["bias"])
    np.testing.assert_array_equal(towers["dinov2"]["norm"]["scale"], theta0["dinov2"]["norm"]["scale"])
    np.testing.assert_array_equal(towers["language"]["norm"]["scale"], end["language"]["norm"]["scale"])
    assert mx.presets.vla()  # what decides which leaves have a pretrained value


def test_tasks_take_turns_and_every_window_of_one_comes_before_it_comes_again():
    task = np.array([0] * 30 + [1] * 10)
    order = batches(task, 5, 3)
    assert order.shape == (5, 16) and (task[order.ravel()] == np.arange(80) % 2).all()
    long, short = (order.ravel()[name::2] for name in (0, 1))
    assert sorted(long[:30]) == list(range(30)) and sorted(short[10:20]) == list(range(30, 40))
    assert (order != batches(task, 5, 4)).any()


def test_errors_are_means_over_real_entries_of_each_episode(windows):
    mask = windows.mask.copy()
    mask[0, 4:] = False
    error = np.ones_like(windows.action)
    error[0, :4], error[0, 4:], error[10:20] = 3.0, 100.0, 2.0
    found = per_episode(windows._replace(mask=mask), error)
    first = (3.0 * 16 + 9 * 32) / (16 + 9 * 32)
    assert found == {"faucet-close": pytest.approx([first, 1.0], abs=1e-5), "faucet-open": [2.0, 1.0]}


def test_the_constant_is_the_median_of_each_tasks_real_actions(windows):
    mask = windows.mask.copy()
    mask[windows.task == 0, 7] = False
    mask[0, 7] = True
    found = constant_chunks(windows._replace(mask=mask))
    np.testing.assert_array_equal(found["faucet-close"][7], windows.action[0, 7])
    np.testing.assert_allclose(found["faucet-open"], np.median(windows.action[windows.task == 1], axis=0))


def test_the_first_episodes_of_every_task(windows):
    few = first_episodes(windows, 1)
    assert set(few.episode) == {0, 1} and len(few.text) == 20 and len(few.texts) == 2


def test_instructions_in_any_wording_belong_to_one_task():
    assert task_of("move to the red cube") == task_of("reach for the purple egg") == "point"
    for name in ("faucet-open", "faucet-close", "drawer-open", "door-open", "button-press"):
        for wording in (TASKS[name].instruction, TASKS[name].synonym, *TASKS[name].paraphrases):
            assert task_of(wording) == name
    with pytest.raises(ValueError, match="belongs to no task"):
        task_of("make coffee")


def test_a_run_that_diverges_says_so(windows, theta0):
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        run(dataclasses.replace(Point("adam", ""), lr=float("nan")), windows, theta0)
