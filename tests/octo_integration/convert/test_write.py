"""Recordings written as RLDS: read back, resumed, and learnt from through the mapping that is proposed."""

import json
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from octo_integration.cli import commands
from octo_integration.convert import ConvertConfig, convert
from octo_integration.convert import write as module
from octo_integration.convert.rlds import check_same, digests_of

from . import recordings
from .recordings import arrays


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """Episodes are converted here, not in processes that would import everything anew; one test has those."""

    def here(function, jobs, **_):
        yield from map(function, jobs)

    monkeypatch.setattr(module, "parallel_map", here)


def steps_of(path: Path) -> list[list[dict[str, Any]]]:
    data = tfds.builder_from_directory(path).as_dataset(split="train")
    return [list(episode["steps"].as_numpy_iterator()) for episode in data]


def test_what_is_written_is_what_was_recorded(tmp_path: Path) -> None:
    source = recordings.npz(tmp_path / "set", instruction=np.array("öffne"))
    out = convert(ConvertConfig(str(source), str(tmp_path / "arm" / "1.0.0"), images="png"))
    read = steps_of(out)
    assert [len(steps) for steps in read] == [3, 2]
    for number, steps in enumerate(read):
        recorded = arrays(len(steps), number)
        for t, step in enumerate(steps):
            np.testing.assert_array_equal(step["observation"]["image"], recorded["image"][t])
            np.testing.assert_array_equal(step["observation"]["joints"], recorded["joints"][t].astype(np.float32))
            np.testing.assert_array_equal(step["action"], recorded["actions"][t].astype(np.float32))
            assert step["language_instruction"].decode() == "öffne"
    assert not list(out.parent.glob(".*")), "nothing is left beside it"


def test_a_bad_episode_stops_it_and_the_same_command_goes_on(tmp_path: Path, capsys, monkeypatch) -> None:
    source = recordings.npz(tmp_path / "set", (3, 2, 4))
    good = (source / "episode_1.npz").read_bytes()
    np.savez(source / "episode_1.npz", **{**arrays(2, 1), "actions": np.full((2, 7), np.inf)})
    config = ConvertConfig(str(source), str(tmp_path / "out"))
    with pytest.raises(ValueError, match=r"episode_1.npz, step 0: actions\[0\] is inf"):
        convert(config)
    assert not (tmp_path / "out").exists()
    (source / "episode_1.npz").write_bytes(good)
    converted = []
    write = module._write
    monkeypatch.setattr(module, "_write", lambda job: (converted.append(job.name), write(job)))
    assert [len(steps) for steps in steps_of(convert(config))] == [3, 2, 4]
    assert converted == ["episode_1.npz", "episode_2.npz"]
    assert "1 of 3 episodes are converted already" in capsys.readouterr().out


def test_skipping_the_bad_one_goes_on_too(tmp_path: Path) -> None:
    source = recordings.npz(tmp_path / "set", (3, 2, 4))
    (source / "episode_1.npz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"episode_1.npz cannot be read"):
        convert(ConvertConfig(str(source), str(tmp_path / "out")))
    out = convert(ConvertConfig(str(source), str(tmp_path / "out"), skip=("episode_1.npz",)))
    assert [len(steps) for steps in steps_of(out)] == [3, 4]


def test_other_options_do_not_go_on_with_it(tmp_path: Path) -> None:
    source = recordings.npz(tmp_path / "set")
    (source / "episode_1.npz").write_bytes(b"")
    for images, said in (("jpeg", "cannot be read"), ("png", "images='jpeg', not 'png'")):
        with pytest.raises(ValueError, match=said):
            convert(ConvertConfig(str(source), str(tmp_path / "out"), images=images))


def test_a_disk_that_returns_other_bits_is_found(tmp_path: Path) -> None:
    source = recordings.npz(tmp_path / "set")
    out = convert(ConvertConfig(str(source), str(tmp_path / "out"), images="png"))
    with pytest.raises(OSError, match="episode 1 reads back differently"):
        check_same(out, [*digests_of(out, 2)[:1], "other"])


def test_processes_share_the_work(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.undo()
    source = recordings.npz(tmp_path / "set", (1, 1))
    convert(ConvertConfig(str(source), str(tmp_path / "out"), workers=2))
    assert len(steps_of(tmp_path / "out")) == 2
    assert not multiprocessing.active_children()


def test_from_recordings_to_batches_through_the_proposed_mapping(tmp_path: Path, capsys, monkeypatch) -> None:
    """The commands that a new user gives, but for the training itself."""
    from octo_integration.data import DataConfig, compute_statistics, eval_batches

    monkeypatch.chdir(tmp_path)
    source = str(recordings.npz(tmp_path / "set", (6, 5), instruction=np.array("lift")))
    assert commands.main(["convert", "--source", source, "--out", "arm", "--dry-run"]) == 0
    dry = capsys.readouterr().out
    assert not (tmp_path / "arm").exists() and "2 episodes" in dry and "lift" in dry
    assert commands.main(["convert", "--source", source, "--out", "arm"]) == 0
    assert "next: maps-vla inspect-data arm" in capsys.readouterr().out
    assert commands.main(["inspect-data", "arm"]) == 0
    shown = capsys.readouterr().out
    assert "--data.standardize inspected/mapping.json --data.cameras primary wrist" in shown
    mapping = json.loads((tmp_path / "inspected/mapping.json").read_text())
    assert mapping["images"] == {"primary": "observation/image", "wrist": "observation/wrist_image"}
    assert mapping["action"] == {"action": 7} and mapping["gripper"]["entry"] == 6
    config = DataConfig("arm", "inspected/mapping.json", cameras=("primary", "wrist"), batch_size=11)
    statistics = compute_statistics(config)
    (batch,) = eval_batches(config, statistics, split="train")
    assert statistics.proprio_dim == 7 and {*batch["task"]["instruction"]} == {"lift"}
    last = statistics.unnormalise_action(batch["action"])[:, 0, 6]
    assert {*np.round(last, 5)} == {0.0, 1.0}


def test_a_folder_that_is_there_is_refused_before_anything_is_read(tmp_path: Path, capsys) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/file").touch()
    assert commands.main(["convert", "--source", "nowhere", "--out", str(tmp_path / "out")]) == commands.BAD_INPUT
    assert "out is there already" in capsys.readouterr().err
