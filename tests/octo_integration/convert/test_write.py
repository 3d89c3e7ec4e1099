"""Recordings written as RLDS: read back, resumed, and learnt from through the mapping that is proposed."""

import json
import multiprocessing
import zipfile
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


def damaged(file: Path, field: str) -> bytes:
    """A picture's bits turned in an .npz file, which its check sum tells when it is read; the file as it was."""
    good = file.read_bytes()
    with zipfile.ZipFile(file) as stored:
        at = stored.getinfo(f"{field}.npy").header_offset + 5000
    file.write_bytes(good[:at] + bytes([good[at] ^ 255]) + good[at + 1 :])
    return good


def test_a_bad_episode_stops_it_and_the_same_command_goes_on(tmp_path: Path, capsys, monkeypatch) -> None:
    source = recordings.npz(tmp_path / "set", (3, 12, 4))
    good = damaged(source / "episode_1.npz", "image")
    config = ConvertConfig(str(source), str(tmp_path / "out"))
    with pytest.raises(ValueError, match=r"episode_1.npz cannot be read .Bad CRC-32 for file 'image.npy'"):
        convert(config)
    assert not (tmp_path / "out").exists()
    (source / "episode_1.npz").write_bytes(good)
    converted = []
    write = module._write
    monkeypatch.setattr(module, "_write", lambda job: (converted.append(job.name), write(job)))
    assert [len(steps) for steps in steps_of(convert(config))] == [3, 12, 4]
    assert converted == ["episode_1.npz", "episode_2.npz"]
    assert "1 of 3 episodes are converted already" in capsys.readouterr().out


@pytest.mark.parametrize("options", [(), ("--dry-run",)])
def test_all_bad_episodes_are_named_in_one_line_before_anything_is_written(
    tmp_path: Path, capsys, monkeypatch, options
) -> None:
    source = recordings.npz(tmp_path / "set", (3,) * 6)
    changes: list[dict[str, Any]] = [
        {"actions": np.where(np.arange(21).reshape(3, 7) == 15, np.nan, 0.0)},
        {"joints": np.zeros((2, 6))},
        {"image": np.zeros((3, 16, 16, 3))},
        {"wrist_image": np.zeros((3, 8, 8, 3), np.uint8)},
    ]
    for number, change in enumerate(changes, 2):
        np.savez(source / f"episode_{number}.npz", **{**arrays(3, number), **change})
    monkeypatch.setattr(module, "_write", lambda job: pytest.fail("it was begun"))
    command = ["convert", "--source", str(source), "--out", str(tmp_path / "out"), *options]
    assert commands.main(command) == commands.BAD_INPUT
    assert capsys.readouterr().err.strip().splitlines()[-1].split("\r")[-1] == (
        "maps-vla convert: 4 of 6 episodes are not fit for use: "
        "episode_2.npz, step 2: actions[1] is nan; "
        "episode_3.npz has steps of different numbers: 2 joints, 3 gripper, 3 actions, 3 image, 3 wrist_image; "
        "episode_4.npz has no image that can be used (images are uint8[N, height, width, 3], and it is "
        "float64[3, 16, 16, 3]), which the first episode has; and 1 more; repair them, or leave them out: "
        "--skip episode_2.npz episode_3.npz episode_4.npz episode_5.npz"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_examining_reads_no_picture(tmp_path: Path) -> None:
    source = recordings.npz(tmp_path / "set", (3, 12))
    damaged(source / "episode_1.npz", "image")
    config = ConvertConfig(str(source), str(tmp_path / "out"))
    module.examine(config, module.plan_of(config))


def test_skipping_the_bad_one_goes_on_too(tmp_path: Path) -> None:
    source = recordings.npz(tmp_path / "set", (3, 2, 4))
    (source / "episode_1.npz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"episode_1.npz cannot be read"):
        convert(ConvertConfig(str(source), str(tmp_path / "out")))
    out = convert(ConvertConfig(str(source), str(tmp_path / "out"), skip=("episode_1.npz",)))
    assert [len(steps) for steps in steps_of(out)] == [3, 4]


def test_other_options_do_not_go_on_with_it(tmp_path: Path) -> None:
    source = recordings.npz(tmp_path / "set", (3, 12))
    damaged(source / "episode_1.npz", "image")
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
