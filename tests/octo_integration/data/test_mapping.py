"""A standardisation as JSON: what it makes of the steps, and that what is wrong is said at once in one line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from octo_integration.data import DataConfig, compute_statistics, eval_batches
from octo_integration.data.mapping import from_json, read_mapping, to_json
from octo_integration.data.rlds import open_source
from octo_integration.data.standardize import episode, find

from .conftest import WriteRLDS, assert_one_line, make_episode, step_features

F = tfds.features
MAPPING: dict[str, Any] = {
    "images": {"primary": "observation/image"},
    "state": {"observation/state": 4},
    "action": {"action": 4},
    "instruction": "language_instruction",
}
GRIPPER = {"entry": 3, "closed": 1, "open": -1}


@pytest.fixture
def written(tmp_path: Path):
    """written(changed entries; None removes) -> the name of a mapping's file."""

    def call(**changes: Any) -> str:
        content = {name: value for name, value in {**MAPPING, **changes}.items() if value is not None}
        (tmp_path / "mapping.json").write_text(json.dumps(content))
        return str(tmp_path / "mapping.json")

    return call


def test_it_reads_what_a_file_of_ours_reads(write_rlds: WriteRLDS, written) -> None:
    path = str(write_rlds([3, 2]))
    batches = {}
    for name in ("metaworld", written()):
        config = DataConfig(path, name, batch_size=5, image_size=16)
        statistics = compute_statistics(config)
        (batches[name],) = eval_batches(config, statistics, split="train")
    first, second = batches.values()
    np.testing.assert_array_equal(first["observation"]["image_primary"], second["observation"]["image_primary"])
    np.testing.assert_array_equal(first["action"], second["action"])
    assert list(second["task"]["instruction"]) == ["do task 0 ö"] * 3 + ["do task 1 ö"] * 2


def test_the_gripper_is_0_closed_and_1_open_and_the_robot_gets_its_own(written) -> None:
    standardisation = find(written(gripper=GRIPPER, action={"move": 3, "grip": 1}, state={"a": 2, "b": 1}))
    raw = np.array([[1, 2, 3, 1], [4, 5, 6, -1], [7, 8, 9, 0]], np.float32)
    steps = {
        **{"observation/image": np.arange(3), "language_instruction": np.array(["x"] * 3)},
        **{"move": raw[:, :3], "grip": raw[:, 3:], "a": 2 * raw[:, :2], "b": raw[:, :1]},
    }
    got = episode(standardisation, {name: tf.constant(value) for name, value in steps.items()})
    np.testing.assert_array_equal(got["action"], [[1, 2, 3, 0], [4, 5, 6, 1], [7, 8, 9, 0.5]])
    np.testing.assert_array_equal(got["observation"]["proprio"], [[2, 4, 1], [8, 10, 4], [14, 16, 7]])
    np.testing.assert_array_equal(standardisation.own(got["action"].numpy()), raw)
    (span,) = standardisation.spans
    assert (span.path, span.entries, span.low, span.high, span.signed) == ("grip", slice(0, 1), -1, 1, True)


def test_a_gripper_of_another_convention_is_refused(write_rlds: WriteRLDS, written) -> None:
    episodes = [make_episode(0, 3)]
    for step, value in zip(episodes[0]["steps"], (0.0, 1.0, 3.0)):
        step["action"][3] = value
    config = DataConfig(str(write_rlds({"train": episodes})), written(gripper=GRIPPER))
    with pytest.raises(ValueError) as error:
        compute_statistics(config)
    assert_one_line(error, "action[3] is 3", "step 2", "from -1 to 1")


def test_an_instruction_of_the_episode_is_that_of_all_its_steps(tmp_path: Path, written) -> None:
    features = F.FeaturesDict(
        {
            "steps": F.Dataset(step_features(language_instruction=None, grip=F.Scalar(np.float32))),
            "episode_metadata": {"task": F.Text()},
        }
    )
    directory = tmp_path / "set" / "1.0.0"
    directory.mkdir(parents=True)
    template = tfds.core.ShardedFileTemplate(data_dir=directory, dataset_name="set", filetype_suffix="tfrecord")
    split = template.replace(split="train")
    with tf.io.TFRecordWriter(str(split.sharded_filepath(shard_index=0, num_shards=1))) as writer:
        for number, length in enumerate((2, 3)):
            steps = make_episode(number, length)["steps"]
            for step in steps:
                del step["language_instruction"]
                step["grip"] = float(number)
            writer.write(features.serialize_example({"steps": steps, "episode_metadata": {"task": f"öffne {number}"}}))
    info = tfds.core.SplitInfo(name="train", shard_lengths=[2], num_bytes=0, filename_template=split)
    tfds.folder_dataset.write_metadata(data_dir=directory, features=features, split_infos=[info], check_data=False)

    name = written(instruction="/episode_metadata/task", action={"action": 4, "grip": 1})
    config = DataConfig(str(directory), name, batch_size=5, image_size=16)
    statistics = compute_statistics(config)
    (batch,) = eval_batches(config, statistics, split="train")
    assert list(batch["task"]["instruction"]) == ["öffne 0"] * 2 + ["öffne 1"] * 3
    assert statistics.action_dim == 5 and statistics.action.max[4] == 1  # a number per step is a vector of length 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"images": {}}, "images is {}; give cameras and their fields"),
        ({"images": {"primary": 3}}, 'images is {"primary": 3}; give cameras'),
        ({"state": ["observation/state"]}, 'state is ["observation/state"]; give fields and their lengths'),
        ({"action": {"action": True}}, 'action is {"action": true}; give fields and their lengths'),
        ({"action": {"action": 0}}, 'action is {"action": 0}'),
        ({"action": None}, "it has no action; give it."),
        ({"instruction": "/"}, 'instruction is "/"; give a field of the steps, or /field of the episode.'),
        ({"gripper": {"entry": 3}}, 'gripper is {"entry": 3}; give entry, closed, open'),
        ({"gripper": {**GRIPPER, "entry": 4}}, "entry is 4, but an action has 4 entries, from 0 on."),
        ({"gripper": {**GRIPPER, "entry": -1}}, "entry is -1; give its place in the action"),
        ({"gripper": {**GRIPPER, "open": float("nan")}}, "open is NaN; give a finite number."),
        ({"gripper": {**GRIPPER, "open": 1}}, "closed and open are both 1"),
        ({"proprio": {}}, "there is no entry 'proprio'; there are images, state, action, gripper, instruction."),
    ],
)
def test_what_is_wrong_in_it_is_named(written, changes: dict[str, Any], said: str) -> None:
    name = written(**changes)
    with pytest.raises(ValueError) as error:
        find(name)
    assert_one_line(error, f"data.standardize: {name}: ", said)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"state": {"observation/joints": 4}}, "steps have no observation/joints, which standardize="),
        ({"state": {"observation/state": 7}}, "steps/observation/state is float32[4], standardize="),
        ({"images": {"primary": "observation/state"}}, "reads uint8[height, width, 3]"),
        ({"instruction": "/task"}, "steps have no /task, which"),
    ],
)
def test_what_the_data_lack_is_named_with_what_is_there(
    write_rlds: WriteRLDS, written, changes: Any, said: str
) -> None:
    path = str(write_rlds([2]))
    with pytest.raises(ValueError) as error:
        open_source(path, "train", written(**changes), ("primary",))
    assert_one_line(error, path, said)


def test_no_file_and_no_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as error:
        find(str(tmp_path / "none.json"))
    assert_one_line(error, f"data.standardize: there is no file {tmp_path}/none.json; maps-vla inspect-data")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError) as error:
        find(str(tmp_path / "bad.json"))
    assert_one_line(error, "bad.json is not JSON")


def test_it_is_read_as_it_was_written(written) -> None:
    for changes in ({}, {"gripper": GRIPPER}):
        mapping = from_json({**MAPPING, **changes})
        assert json.loads(to_json(mapping)) == {**MAPPING, **changes}
        assert read_mapping(Path(written(**changes))) == mapping
