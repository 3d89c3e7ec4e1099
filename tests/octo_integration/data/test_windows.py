import numpy as np
import pytest
import tensorflow as tf

from octo_integration.data.windows import windows


def episode(length: int) -> dict:
    steps = tf.range(length)
    return {
        "observation": {
            "image_primary": tf.strings.as_string(steps),
            "proprio": tf.cast(steps[:, None], tf.float32),
        },
        "task": {"instruction": tf.fill([length], "go")},
        "action": tf.cast(steps[:, None], tf.float32) * [1.0, 10.0],
    }


@pytest.mark.parametrize("window", [1, 2, 5])
@pytest.mark.parametrize("chunk", [1, 3, 8])
@pytest.mark.parametrize("length", [0, 1, 4])
def test_every_entry_is_the_step_it_should_be(length: int, window: int, chunk: int) -> None:
    got = windows(episode(length), window, chunk, None)
    assert got["action"].shape == (length, window - 1 + chunk, 2)
    assert got["observation"]["proprio"].shape == (length, window, 1)
    for now in range(length):
        for h in range(window - 1 + chunk):
            wanted = now - (window - 1) + h
            step = min(max(wanted, 0), length - 1)
            np.testing.assert_array_equal(got["action"][now, h], [step, 10 * step])
            np.testing.assert_array_equal(got["action_pad_mask"][now, h], [0 <= wanted < length] * 2)
        for t in range(window):
            wanted = now - (window - 1) + t
            assert bool(got["observation"]["timestep_pad_mask"][now, t]) == (wanted >= 0)
            assert got["observation"]["proprio"][now, t, 0] == max(wanted, 0)
            image = got["observation"]["image_primary"][now, t].numpy()
            assert image == str(max(wanted, 0)).encode()
    assert got["task"]["instruction"].shape == (length,)
