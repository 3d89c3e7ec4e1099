"""Files written whole or not at all."""

import json
import os
from pathlib import Path

import pytest

from octo_integration.common import files


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_json_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "drift.json"
    files.write_json(path, {"step": 1})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match=f"^cannot write {path}: No space left on device; make room"):
        files.write_json(path, {"step": 2})
    assert json.loads(path.read_text()) == {"step": 1}
    assert names(tmp_path) == ["drift.json"]


@pytest.mark.parametrize("shared", [False, True])
def test_a_writer_that_is_interrupted_leaves_nothing(tmp_path, shared):
    path = tmp_path / "figure.png"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        with files.replacing(path, shared=shared) as temporary:
            temporary.write_text("half")
            assert temporary.suffix == ".png" and temporary.name.startswith(".figure.tmp")
            raise KeyboardInterrupt
    assert path.read_text() == "old" and names(tmp_path) == ["figure.png"]


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    path, done = tmp_path / "w.safetensors", []
    fsync, replace = os.fsync, os.replace

    def flushed(handle: int) -> None:
        done.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        fsync(handle)

    def named(old: Path, new: Path) -> None:
        done.append("renamed")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", named)
    with files.replacing(path) as temporary:
        temporary.write_text("whole")
    assert done == [".w.tmp.safetensors", "renamed", tmp_path.name]


def test_two_who_write_a_shared_file_do_not_mix(tmp_path):
    path = tmp_path / "statistics.json"
    with files.replacing(path, shared=True) as one, files.replacing(path, shared=True) as other:
        other.write_text("the first")
        one.write_text("the last")
    assert path.read_text() == "the last" and names(tmp_path) == ["statistics.json"]


def test_what_a_killed_writer_left_is_overwritten(tmp_path):
    path = tmp_path / "config.json"
    (tmp_path / ".config.tmp.json").write_text("half" * 100)
    files.write_json(path, {})
    assert path.read_text() == "{}\n" and names(tmp_path) == ["config.json"]
