"""`maps-vla finetune` killed at any moment: the same command resumes at the last whole checkpoint, bit for bit.

By default a handful of seeded kills; with TORTURE=1, a hundred. Its processes are forked by `crashes.py`.
"""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from octo_integration.state import whole
from tests.octo_integration.train.killed import (
    STEPS,
    Runs,
    Straight,
    assert_like_straight,
    error_line,
    has_begun,
    moments,
    newest,
    resumed_at,
    serve,
)

TORTURE = os.environ.get("TORTURE") == "1"
KILLS = 100 if TORTURE else 4


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    with serve(tmp_path_factory.mktemp("crashes")) as served:
        yield served


@pytest.fixture(scope="module")
def straight(runs: Runs) -> Straight:
    answer = runs(runs.root / "straight")
    assert answer["code"] == 0, answer["text"]
    return Straight(runs.root / "straight", answer["events"], answer["seconds"])


def test_kills_at_any_moment_cost_only_the_steps_since_the_last_checkpoint(runs, straight, capsys):
    kills, finished, last, out = 0, 0, 0, runs.root / "run0"
    for die in moments(straight, seed=0):
        answer = runs(out, **({"die": die} if kills < KILLS else {}))
        context = (kills, die, answer["text"])
        assert "Traceback" not in answer["text"], context
        assert has_begun(answer) or "event" in die, context
        assert resumed_at(answer) == last or not has_begun(answer), context
        if answer["code"] == 0:
            assert_like_straight(out, straight)
            finished, last, out = finished + 1, 0, runs.root / f"run{finished + 1}"
            if kills >= KILLS:
                break
            continue
        assert answer["code"] == -signal.SIGKILL, context
        kills, now = kills + 1, newest(out)
        assert now >= last, context
        last = now
    with capsys.disabled():
        print(f" [{kills} kills, {finished} runs finished alike]", end="")
    assert kills == KILLS and finished >= 1


def test_sigterm_and_ctrl_c_save_first(runs, straight):
    out, step = runs.root / "signals", 0
    for number, more in ((signal.SIGINT, 3), (signal.SIGTERM, 2)):
        answer = runs(out, die={"step": more}, signal=int(number))
        assert answer["code"] == 128 + number and resumed_at(answer) == step, answer["text"]
        step += more
        assert f"at step {step}, saved" in answer["text"] and "Traceback" not in answer["text"]
        assert newest(out) == step
    answer = runs(out)
    assert resumed_at(answer) == step and answer["code"] == 0, answer["text"]
    assert_like_straight(out, straight)


def shortened(out: Path) -> Path:
    """Cuts the largest file of the newest checkpoint in half; returns it."""
    item = out / "checkpoints" / str(newest(out)) / whole.ITEM
    path = max((p for p in item.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def test_a_torn_checkpoint_is_skipped_with_a_warning_that_names_it(runs, straight):
    out = runs.root / "cut"
    shutil.copytree(straight.out, out)
    torn = out / "checkpoints" / str(STEPS)
    name = str(shortened(out).relative_to(torn))
    answer = runs(out)
    assert answer["code"] == 0, answer["text"]
    assert resumed_at(answer) == STEPS - 2
    (warning,) = [line for line in answer["text"].splitlines() if "torn" in line]
    assert f"checkpoint {torn} is torn and skipped: {name} has " in warning
    aside = torn.with_name(torn.name + whole.TORN)
    assert aside.is_dir()
    shutil.rmtree(aside)
    assert_like_straight(out, straight)


def mount(*arguments: str) -> None:
    if os.getuid() or shutil.which("mount") is None or subprocess.run(["mount", *arguments]).returncode:
        pytest.skip("NOT TESTED: full and read-only disks need file systems of their own, which only root may mount")


@contextlib.contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Path]:
    """A file system of that size, mounted at `folder`."""
    folder.mkdir()
    mount("-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def kilobytes(folder: Path) -> int:
    """What the files below `folder` take of a disk, in whole pages."""
    return sum(-(-path.stat().st_size // 4096) * 4 for path in folder.rglob("*") if path.is_file())


def test_a_full_disk_is_one_line_and_the_last_checkpoint_is_intact(runs, straight):
    one, logs = kilobytes(straight.out / "checkpoints" / str(STEPS)), 200
    with small_disk(runs.root / "small", int(1.5 * one) + logs) as folder:  # a second checkpoint does not fit
        out = folder / "run"
        line = error_line(runs(out))
        assert str(out) in line and "No space left on device" in line
        kept = newest(out)
        assert kept == 2 and not list((out / "checkpoints").glob("*tmp*"))
        moved = runs.root / "moved"
        shutil.copytree(out, moved)
    answer = runs(moved)
    assert resumed_at(answer) == kept and answer["code"] == 0, answer["text"]
    assert_like_straight(moved, straight)


def test_a_read_only_directory_is_one_line_and_changes_nothing(runs, straight):
    with small_disk(runs.root / "read_only", 4 * kilobytes(straight.out)) as folder:
        out = folder / "run"
        shutil.copytree(straight.out, out)
        shutil.rmtree(out / "checkpoints" / str(STEPS))
        before = sorted(str(path) for path in out.rglob("*"))
        mount("-o", "remount,ro", str(folder))
        line = error_line(runs(out))
        assert str(out) in line and "Read-only file system" in line
        assert sorted(str(path) for path in out.rglob("*")) == before and newest(out) == STEPS - 2


def test_the_list_of_a_checkpoint_tells_what_is_missing_short_or_damaged(tmp_path):
    item = tmp_path / "4" / whole.ITEM
    (item / "d").mkdir(parents=True)
    for name in ("_METADATA", "manifest.ocdbt", "d/0b39"):
        (item / name).write_bytes(b"x" * 10)
    whole.write_list(item)
    assert whole.damage(tmp_path / "4") is None
    (item / "d/0b39").write_bytes(b"x" * 9)
    assert whole.damage(tmp_path / "4") == "default/d/0b39 has 9 of 10 bytes"
    (item / "d/0b39").unlink()
    assert whole.damage(tmp_path / "4") == "default/d/0b39 is missing"
    for text in ("{", "[]", '{"d": "many"}', ""):
        (item / whole.LIST).write_text(text)
        assert "default/" in str(whole.damage(tmp_path / "4"))
    (item / whole.LIST).unlink()  # as before there were lists
    assert whole.damage(tmp_path / "4") is None
    (item / "_METADATA").unlink()
    assert whole.damage(tmp_path / "4") == "default/_METADATA is missing"


def test_only_torn_checkpoints_newer_than_the_newest_whole_one_are_set_aside(tmp_path, caplog):
    for step in (2, 4, 6):
        item = tmp_path / str(step) / whole.ITEM
        item.mkdir(parents=True)
        for name in whole.NEEDED:
            (item / name).write_bytes(b"x")
        whole.write_list(item)
    for step in (2, 6):
        (tmp_path / str(step) / whole.ITEM / "manifest.ocdbt").unlink()
    assert whole.newest_whole(tmp_path) == 4 and len(caplog.messages) == 1
    whole.set_torn_aside(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "4", "6.torn"]
    assert f"checkpoint {tmp_path / '6'} is torn and skipped: default/manifest.ocdbt is missing" in caplog.messages[-1]
    assert whole.steps_in(tmp_path) == [4, 2]
