import numpy as np
import pytest
import tensorflow as tf

from octo_integration.data.standardize import binarise_gripper, episode, find, known


@pytest.mark.parametrize(
    ("opening", "expected"),
    [
        ([1.0, 0.0, 1.0], [1, 0, 1]),
        ([0.96, 0.04], [1, 0]),
        ([1.0, 0.7, 0.3, 0.0], [1, 0, 0, 0]),  # closing: the state that follows
        ([0.0, 0.3, 0.7, 1.0, 0.5, 0.0], [0, 1, 1, 1, 0, 0]),
        ([1.0, 0.5, 0.6], [1, 0.6, 0.6]),  # nothing clear follows: the last opening
        ([0.5], [0.5]),
        ([], []),
    ],
)
def test_binarise_gripper(opening: list[float], expected: list[float]) -> None:
    got = binarise_gripper(tf.constant(opening, tf.float32))
    np.testing.assert_array_equal(got, np.asarray(expected, np.float32))


def test_bridge_relabels_the_movement_and_drops_the_last_step() -> None:
    rng = np.random.default_rng(0)
    state = rng.normal(size=(5, 7)).astype(np.float32)
    action = rng.normal(size=(5, 7)).astype(np.float32)
    action[:, 6] = [1, 0.5, 0, 0, 1]
    steps = {
        "observation/image_0": np.arange(5),
        "observation/state": state,
        "action": action,
        "language_instruction": np.array(list("abcde")),
    }
    got = episode(find("bridge"), {path: tf.constant(value) for path, value in steps.items()})
    np.testing.assert_array_equal(got["action"][:, :6], state[1:, :6] - state[:-1, :6])
    np.testing.assert_array_equal(got["action"][:, 6], [1, 0, 0, 0])
    np.testing.assert_array_equal(got["observation"]["proprio"], state[:4])
    np.testing.assert_array_equal(got["observation"]["image_primary"], np.arange(4))
    assert got["task"]["instruction"].numpy().tolist() == [b"a", b"b", b"c", b"d"]


@pytest.mark.parametrize("name", known())
@pytest.mark.parametrize("length", [0, 1, 2])
def test_short_episodes_give_vectors_of_one_length(name: str, length: int) -> None:
    standardisation = find(name)
    steps = {
        **{path: tf.fill([length], "image") for path in standardisation.images.values()},
        standardisation.instruction: tf.fill([length], "text"),
        **{path: tf.ones([length, size]) for path, size in standardisation.vectors.items()},
    }
    standardised = episode(standardisation, steps)
    count = max(length - 1, 0) if name == "bridge" else length
    assert {len(x) for x in tf.nest.flatten(standardised)} == {count}
