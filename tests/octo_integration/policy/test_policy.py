"""What a policy shows its model is what the training windows showed it."""

import dataclasses

import jax
import numpy as np
import pytest

from octo_integration import data
from octo_integration.config import FinetuneConfig
from octo_integration.data import DataConfig
from octo_integration.policy.policy import Policy, act_together
from octo_integration.policy.trained import Trained
from octo_integration.state.setup import build

WINDOW = 3


class Seen:
    """Stands in for a model: keeps what it was asked."""

    def __init__(self) -> None:
        self.batches: list = []
        self.numbers: list[int] = []

    def __call__(self, params, batch, number):
        self.batches.append(batch)
        self.numbers.append(number)
        return np.zeros((len(batch["task"]["instruction"]), 8, 4), np.float32)


@pytest.fixture(scope="module")
def statistics(tmp_path_factory):
    return data.compute_statistics(DataConfig(), tmp_path_factory.mktemp("cache"))


def make(statistics, **changes):
    config = FinetuneConfig(out="run", data=DataConfig(window=WINDOW, **changes))
    seen = Seen()
    return Policy(Trained(config, build(config, statistics), None, seen)), seen


def moment(seed=0, names=("image_primary",)):
    rng = np.random.default_rng(seed)
    images = {name: rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for name in names}
    return {**images, "proprio": rng.normal(size=4).astype(np.float32)}


def test_history_is_that_of_the_training_windows(statistics):
    policy, seen = make(statistics)
    config = DataConfig(window=WINDOW, batch_size=6)
    windows = next(data.eval_batches(config, statistics, split="heldout"))
    for n in range(6):
        observation = {
            "image_primary": windows["observation"]["image_primary"][n, -1],
            "proprio": statistics.proprio.mean + statistics.proprio.std * windows["observation"]["proprio"][n, -1],
        }
        # Asked at every other moment only; it is shown the rest.
        if n % 2:
            policy(observation, windows["task"]["instruction"][n])
            shown = seen.batches[-1]["observation"]
            for name in ("image_primary", "timestep_pad_mask"):
                np.testing.assert_array_equal(shown[name][0], windows["observation"][name][n])
            np.testing.assert_allclose(shown["proprio"][0], windows["observation"]["proprio"][n], atol=1e-5)
        else:
            policy.observe(observation)
    assert len(seen.batches) == 3 and seen.numbers == [0, 1, 2]


def test_another_episode_begins_without_the_last(statistics):
    policy, seen = make(statistics)
    for n in range(4):
        policy(moment(n), "push")
    policy.reset()
    policy(moment(9), "push")
    shown = seen.batches[-1]["observation"]
    np.testing.assert_array_equal(shown["timestep_pad_mask"], [[False, False, True]])
    for image in shown["image_primary"][0]:
        np.testing.assert_array_equal(image, moment(9)["image_primary"])
    assert seen.numbers == [0, 1, 2, 3, 0]


def test_history_is_what_was_seen_though_the_memory_is_used_again(statistics):
    policy, seen = make(statistics)
    camera = moment()
    policy.observe(camera)
    camera["image_primary"][:] = moment(1)["image_primary"]
    policy(camera, "push")
    shown = seen.batches[-1]["observation"]["image_primary"][0]
    np.testing.assert_array_equal(shown[1], moment()["image_primary"])
    np.testing.assert_array_equal(shown[2], moment(1)["image_primary"])


def test_what_an_observation_lacks_is_masked(statistics):
    policy, seen = make(statistics, cameras=("primary", "wrist"), goal=True)
    both = moment(0, ("image_primary", "image_wrist", "goal"))
    policy.observe(both)
    policy(moment(1), "")
    batch = seen.batches[-1]
    masks = batch["observation"]["pad_mask_dict"]
    np.testing.assert_array_equal(masks["image_wrist"], [[True, True, False]])
    np.testing.assert_array_equal(masks["image_primary"], [[True, True, True]])
    np.testing.assert_array_equal(batch["observation"]["image_wrist"][0, 1], both["image_wrist"])
    assert not batch["observation"]["image_wrist"][0, 2].any()
    assert batch["task"]["pad_mask_dict"] == {"instruction": [False], "image_primary": [False]}
    policy(both, "push")
    batch = seen.batches[-1]
    np.testing.assert_array_equal(batch["task"]["image_primary"][0], both["goal"])
    assert batch["task"]["pad_mask_dict"] == {"instruction": [True], "image_primary": [True]}


def test_the_model_takes_what_the_policy_gives(statistics):
    config = FinetuneConfig(out="run", data=DataConfig(window=WINDOW, cameras=("primary", "wrist"), goal=True))
    built = build(config, statistics)

    def shapes(params, batch, number):
        form = built.device_form(batch)
        done = jax.eval_shape(
            lambda: built.model.init_with_output(jax.random.key(0), form["observation"], form["task"])[0]
        )
        return np.zeros(done.shape, done.dtype)

    actions = Policy(Trained(config, built, None, shapes))(moment(), "push")
    assert actions.shape == (8, 4)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("image_primary", np.zeros((3, 64, 64), np.uint8), r"image_primary is uint8\[3, 64, 64\]; give uint8\[height"),
        ("image_primary", np.zeros((64, 64, 3), np.float32), r"image_primary is float32\[64, 64, 3\]; give uint8"),
        ("proprio", np.zeros(7, np.float32), r"proprio has shape \(7,\), but the run was trained on \(4,\)"),
        ("proprio", np.full(4, np.nan, np.float32), "proprio is NaN or infinite"),
    ],
)
def test_an_observation_that_does_not_fit_is_named(statistics, name, value, words):
    policy, _ = make(statistics)
    with pytest.raises(ValueError, match=words):
        policy({**moment(), name: value}, "push")


def test_an_observation_without_an_image_is_refused(statistics):
    policy, _ = make(statistics)
    with pytest.raises(ValueError, match="has none of image_primary; give at least one image"):
        policy.observe({"proprio": np.zeros(4, np.float32)})


@pytest.mark.parametrize("shape", [(48, 48, 3), (100, 60, 3), (256, 256, 3)])
def test_images_of_another_size_are_resized_as_the_reader_of_data_does(statistics, shape):
    from octo_integration.data.episodes import decode_image

    policy, seen = make(statistics)
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    policy({"image_primary": image}, "push")
    expected = np.asarray(decode_image(image, 64)).astype(int)
    assert np.abs(seen.batches[0]["observation"]["image_primary"][0, -1] - expected).max() <= 1


def test_policies_that_act_together_are_one_batch_of_what_each_is_alone(statistics):
    alone, seen = make(statistics)
    trained = alone._trained
    for n in range(2):
        alone.reset()
        alone.observe(moment(n))
        alone(moment(n + 5), f"push {n}")
    together = [Policy(trained), Policy(trained)]
    for n, policy in enumerate(together):
        policy.observe(moment(n))
    seen_before = list(seen.batches)
    chunks = act_together(together, [moment(5), moment(6)], ["push 0", "push 1"])
    assert len(chunks) == 2 and all(chunk.shape == (8, 4) for chunk in chunks)
    expected = jax.tree.map(lambda *rows: np.concatenate(rows), *seen_before)
    jax.tree.map(np.testing.assert_array_equal, seen.batches[-1], expected)
    together[0].reset()
    with pytest.raises(ValueError, match="asked equally often"):
        act_together(together, [moment(), moment()], ["", ""])


@pytest.mark.parametrize("blank", [" ", "\r\n", "\x00\x00", "\u3000"])
def test_a_blank_instruction_is_none_as_in_training(statistics, blank):
    policy, seen = make(statistics)
    for instruction in (blank, blank + "push"):
        policy(moment(), instruction)
    assert [batch["task"]["pad_mask_dict"]["instruction"].tolist() for batch in seen.batches] == [[False], [True]]


def test_an_image_of_one_colour_is_missing_as_in_training(statistics):
    policy, seen = make(statistics, cameras=("primary", "wrist"), goal=True)
    grey = np.full((64, 64, 3), 90, np.uint8)
    policy({**moment(), "image_wrist": grey, "goal": grey, "proprio": np.zeros(4, np.float32)}, "push")
    batch = seen.batches[-1]
    masks = batch["observation"]["pad_mask_dict"]
    assert masks["image_primary"].all() and masks["proprio"].all() and not masks["image_wrist"].any()
    assert not batch["observation"]["image_wrist"].any() and not batch["task"]["image_primary"].any()
    assert batch["task"]["pad_mask_dict"]["image_primary"].tolist() == [False]


def test_bounds_clipped_are_clipped_by_the_policy_too(statistics):
    clipped = dataclasses.replace(statistics, normalisation="bounds_clipped")
    policy, seen = make(clipped)
    low, high = clipped.proprio.q01, clipped.proprio.q99
    policy({**moment(), "proprio": high + 5 * (high - low)}, "push")
    np.testing.assert_array_equal(seen.batches[-1]["observation"]["proprio"], np.ones((1, WINDOW, 4), np.float32))
    config = FinetuneConfig(out="run")
    far = Trained(config, build(config, clipped), None, lambda *_: np.full((1, 8, 4), -3, np.float32))
    np.testing.assert_allclose(Policy(far)(moment(), "push"), np.tile(clipped.action.q01, (8, 1)), atol=1e-6)
