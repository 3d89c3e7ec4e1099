"""Action error: what is averaged over what, per task, and its uncertainty."""

import numpy as np
import pytest

from octo_integration.evaluate.action_error import action_error

CHUNK, ACTIONS = 4, 2


def batches(episodes, lengths, tasks, size=5):
    """Windows of episodes in order; the demonstrated actions are 0, padding included."""
    owner = np.repeat(episodes, lengths)
    step = np.concatenate([np.arange(n) for n in lengths])
    left = np.repeat(lengths, lengths) - step
    texts = np.repeat(np.asarray(tasks, object), lengths)
    for i in range(0, len(owner), size):
        rows = slice(i, i + size)
        yield {
            "task": {"instruction": texts[rows]},
            "action": np.zeros((len(owner[rows]), CHUNK, ACTIONS), np.float32),
            "action_pad_mask": np.repeat((np.arange(CHUNK) < left[rows, None])[..., None], ACTIONS, axis=-1),
            "episode": owner[rows],
        }


def predict(params, batch, number):
    """Wrong by params[episode] on real entries, by 100 on padding."""
    error = np.asarray(params)[batch["episode"]][:, None, None]
    return np.where(batch["action_pad_mask"], error, 100.0)


def unnormalise(x):
    return x * np.asarray([1.0, 10.0]) + 3.0


def test_padding_does_not_count_and_tasks_are_told_apart():
    data = batches([0, 1, 2], [3, 6, 4], ["push", "pull", "push"])
    error = action_error(predict, [1.0, 2.0, 5.0], data, unnormalise)
    # Windows of an episode of n steps hold min(n, 4) + ... + 1 real steps: 6, 18 and 10 here.
    assert error.l1 == pytest.approx((6 * 1 + 18 * 2 + 10 * 5) / 34)
    assert error.episodes == 3
    assert error.tasks["pull"].l1 == pytest.approx(2.0)
    assert error.tasks["push"].l1 == pytest.approx((6 * 1 + 10 * 5) / 16)
    assert (error.tasks["push"].episodes, error.tasks["pull"].episodes) == (2, 1)
    np.testing.assert_allclose(error.physical, [error.l1, 10 * error.l1], rtol=1e-6)


def test_a_dimension_that_a_data_set_lacks_does_not_count():
    def lacking(lengths):
        for batch in batches(range(len(lengths)), lengths, ["push"] * len(lengths)):
            batch["action_pad_mask"][..., 1] &= (batch["episode"] == 0)[:, None]
            yield batch

    error = action_error(predict, [1.0, 2.0], lacking([3, 6]), unnormalise)
    assert error.l1 == pytest.approx((2 * 6 * 1 + 18 * 2) / (2 * 6 + 18))
    np.testing.assert_allclose(error.physical, [(6 * 1 + 18 * 2) / 24, 10 * 1], rtol=1e-6)


def test_a_dimension_that_no_episode_has_has_no_error_in_its_units():
    (batch,) = batches([0], [3], ["push"])
    batch["action_pad_mask"][..., 1] = False
    error = action_error(predict, [1.0], [batch], unnormalise)
    assert error.l1 == error.physical[0] == 1.0 and np.isnan(error.physical[1])


def test_heads_that_draw_are_told_the_number_of_the_batch():
    seen = []

    def draw(params, batch, number):
        seen.append(number)
        return predict(params, batch, number)

    action_error(draw, [1.0, 2.0], batches([0, 1], [6, 6], ["push"] * 2), unnormalise)
    assert seen == [0, 1, 2]


def test_the_standard_error_is_that_of_episodes_not_of_frames():
    rng = np.random.default_rng(0)
    levels = rng.normal(3.0, 1.0, 40)
    error = action_error(predict, levels, batches(np.arange(40), [30] * 40, ["push"] * 40, size=64), unnormalise)
    assert error.se == pytest.approx(levels.std() / 40**0.5, rel=0.15)


def test_bad_input():
    with pytest.raises(ValueError, match="no frames"):
        action_error(predict, [], iter(()), unnormalise)
    with pytest.raises(ValueError, match="predicts NaN"):
        action_error(predict, [np.nan], batches([0], [3], ["push"]), unnormalise)
