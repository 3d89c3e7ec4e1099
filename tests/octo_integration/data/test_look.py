"""What `inspect-data` sees of a data set, and what it proposes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from octo_integration.cli import commands
from octo_integration.data.look import gripper_of, histogram, look, suspects
from octo_integration.data.mapping import Gripper
from octo_integration.data.proposal import Leaf, propose

from .conftest import WriteRLDS, make_episode, step_features

F = tfds.features


def changed(**values: Any) -> list[dict[str, Any]]:
    """Two episodes of four steps whose actions' entries, or other fields, are replaced: entry_3=[8 numbers], ..."""
    episodes = [make_episode(i, 4) for i in range(2)]
    steps = [step for episode in episodes for step in episode["steps"]]
    for name, given in values.items():
        for step, value in zip(steps, given):
            if name.startswith("entry_"):
                step["action"][int(name[-1])] = value
            elif name == "image":
                step["observation"]["image"] = value
            else:
                step[name] = value
    return episodes


def test_fields_ranges_and_pictures(write_rlds: WriteRLDS) -> None:
    found = look(str(write_rlds([3, 2])), "train", 64)
    assert found.lengths == [3, 2]
    assert found.described["observation/image"] == "uint8[16, 16, 3]"
    assert found.leaves["observation/state"] == Leaf("vector", 4)
    np.testing.assert_array_equal(found.vectors["observation/state"][:, 1], [0, 1, 2, 0, 1])
    assert [len(frames) for frames in found.frames.values()] == [5]
    assert found.instructions == ["do task 0 ö", "do task 1 ö"]


def test_only_so_many_episodes_are_read(write_rlds: WriteRLDS) -> None:
    assert look(str(write_rlds([3, 2, 4])), "train", 2).lengths == [3, 2]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "steps/observation/state[2, 3] never changes"),
        ({"entry_1": [1.0] * 8}, "steps/action[1] never changes"),
        ({"entry_1": [np.nan] + [0.0] * 7}, "steps/action is NaN or infinite in 1 of 8 steps"),
        ({"entry_1": [-1, -1, 1, 0.5, 0.2, 1, -0.3, -0.5]}, "steps/action[1] is saturated: 50% of the steps"),
        ({"image": [np.zeros((16, 16, 3), np.uint8)] * 4}, "of one colour in 3 of 6 images"),
        ({"language_instruction": ["\u200b"] * 4}, "the instruction is empty in 1 of 2 episodes"),
    ],
)
def test_what_looks_wrong_is_named(write_rlds: WriteRLDS, changes: dict[str, Any], said: str) -> None:
    found = look(str(write_rlds({"train": changed(**changes)})), "train", 64)
    lines = list(suspects(found, ["action"]))
    assert any(said in line for line in lines), lines
    assert len(lines) <= 3 and ("state" in said or any("state[2, 3]" in line for line in lines))


def test_an_episode_without_steps_is_named(write_rlds: WriteRLDS) -> None:
    found = look(str(write_rlds([2, 0])), "train", 64)
    assert "1 of 2 episodes have no step" in list(suspects(found, ["action"]))


def test_a_gripper_is_what_stands_at_two_ends_and_begins_open(write_rlds: WriteRLDS) -> None:
    path = write_rlds({"train": changed(entry_3=[-1, -1, 1, 1] * 2)})
    assert gripper_of(look(str(path), "train", 64), ["action"]) == Gripper(3, closed=1.0, open=-1.0)
    assert gripper_of(look(str(write_rlds([5, 5])), "train", 64), ["action"]) is None


def test_histogram() -> None:
    assert histogram(np.array([0.0] * 8 + [1.0] * 4), 4) == "█··▄"
    assert histogram(np.array([np.nan]), 3) == "···"


def test_the_proposal_goes_by_names() -> None:
    leaves = {
        "action/grip": Leaf("vector", 1),
        "action/move": Leaf("vector", 6),
        "observation/hand_camera": Leaf("image", 0),
        "observation/side": Leaf("image", 0),
        "observation/front": Leaf("image", 0),
        "observation/state": Leaf("vector", 8),
        "reward": Leaf("vector", 1),
        "/episode_metadata/file": Leaf("text", 0),
        "/episode_metadata/instruction": Leaf("text", 0),
    }
    mapping = propose(leaves)
    assert mapping.images == {
        "primary": "observation/front",
        "secondary": "observation/side",
        "wrist": "observation/hand_camera",
    }
    assert [*mapping.action.items()] == [("action/move", 6), ("action/grip", 1)]
    assert mapping.state == {"observation/state": 8}
    assert mapping.instruction == "/episode_metadata/instruction"
    with pytest.raises(ValueError, match="there is no image among the fields action/grip"):
        propose({path: leaf for path, leaf in leaves.items() if leaf.kind != "image"})


def test_the_command_writes_the_sheet_and_keeps_a_mapping(write_rlds: WriteRLDS, tmp_path: Path, capsys) -> None:
    path = str(write_rlds([3, 2]))
    arguments = ["inspect-data", path, "--out", str(tmp_path / "inspected")]
    assert commands.main(arguments) == 0
    shown = capsys.readouterr().out
    for part in (
        "2 episodes looked at, of 2 to 3 steps",
        "  observation/state ",
        "do task 0 ö",
        "[3]  ",
        "never changes",
    ):
        assert part in shown
    with PIL.Image.open(tmp_path / "inspected/sheet.png") as sheet:
        assert sheet.size == (9 * 128, 128)
    file = tmp_path / "inspected/mapping.json"
    mapping = json.loads(file.read_text())
    assert mapping["images"] == {"primary": "observation/image"} and mapping["action"] == {"action": 4}
    file.write_text("mine")
    assert commands.main(arguments) == 0
    assert file.read_text() == "mine" and "it was kept" in capsys.readouterr().out


def test_a_data_set_without_images_gets_no_mapping_and_says_why(write_rlds: WriteRLDS, tmp_path: Path, capsys) -> None:
    episodes = [make_episode(0, 3)]
    for step in episodes[0]["steps"]:
        del step["observation"]["image"]
    path = write_rlds({"train": episodes}, steps=step_features(image=None))
    assert commands.main(["inspect-data", str(path), "--out", str(tmp_path / "inspected")]) == 0
    assert "no mapping is proposed: there is no image among the fields" in capsys.readouterr().out
    assert not (tmp_path / "inspected/mapping.json").exists()
