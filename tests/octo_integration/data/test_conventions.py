"""Actions that mean something else than their standardisation takes them for: one line, when statistics are made."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from octo_integration.data import DataConfig, compute_statistics

from .conftest import WriteRLDS, assert_one_line, two_colours

F = tfds.features


def libero(write_rlds: WriteRLDS, gripper: list[float], movement: float = 0.5) -> Path:
    """Two episodes in LIBERO's layout, with these grippers."""
    features = {
        "observation": F.FeaturesDict(
            {"image": F.Image(shape=(16, 16, 3)), "state": F.Tensor(shape=(8,), dtype=np.float32)}
        ),
        "action": F.Tensor(shape=(7,), dtype=np.float32),
        "language_instruction": F.Text(),
    }
    steps = [
        {
            "observation": {"image": two_colours(0), "state": np.zeros(8, np.float32)},
            "action": np.array([movement] * 6 + [value], np.float32),
            "language_instruction": "x",
        }
        for value in gripper
    ]
    return write_rlds({"train": [{"steps": steps}] * 2}, steps=features)


def statistics(path: Path):
    return compute_statistics(DataConfig(path=str(path), standardize="libero"))


@pytest.mark.parametrize(("gripper", "opening"), [([-1, -1, 1], [1, 0]), ([1, 1, 1], [0, 0]), ([-1, -1, -1], [1, 1])])
def test_liberos_own_is_taken(write_rlds: WriteRLDS, gripper: list[float], opening: list[float]) -> None:
    action = statistics(libero(write_rlds, gripper)).action
    assert [action.max[6], action.min[6]] == opening


def test_a_gripper_of_0_and_1_is_refused(write_rlds: WriteRLDS) -> None:
    with pytest.raises(ValueError) as caught:
        statistics(libero(write_rlds, [0, 1, 0]))
    assert_one_line(caught, "[train]: steps/action[6] goes from 0 to 1", "values from -1 to 1", "data.standardize")


def test_movements_in_other_units_are_refused_with_their_place(write_rlds: WriteRLDS) -> None:
    with pytest.raises(ValueError) as caught:
        statistics(libero(write_rlds, [-1, 1], movement=12.5))
    assert_one_line(caught, "steps/action[0] is 12.5 in episode 0, step 0", "values from -1 to 1")
    assert statistics(libero(write_rlds, [-1, 1], movement=1.05)).num_steps == 4  # rounding, overshoot
