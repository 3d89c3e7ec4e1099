"""`maps-vla finetune` killed at any moment: the same command resumes at the last whole checkpoint, bit for bit.

By default a handful of seeded kills; with TORTURE=1, a hundred. Its processes are forked by `crashes.py`.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from octo_integration.train import whole

ROOT = Path(__file__).parents[3]
STEPS = 8
TORTURE = os.environ.get("TORTURE") == "1"
KILLS = 100 if TORTURE else 4


class Runs:
    """Runs of the micro model in folders of `root`, one after the other."""

    def __init__(self, root: Path, server: subprocess.Popen[str]):
        self.root, self.server = root, server

    def __call__(self, out: Path, *more: str, **job: Any) -> dict[str, Any]:
        """Runs, or resumes, `out`; the answer is that of `crashes.py`, with the text it printed."""
        arguments = [
            "finetune", "--out", str(out), "--model", "micro", "--weights", "None", "--data.batch-size", "4",
            "--optimizer.warmup", "2", "--optimizer.steps", str(STEPS), "--eval-splits", "--log-every", "1",
            "--save-every", "2", *more,
        ]  # fmt: skip
        log = self.root / "log"
        for path in (log, Path(f"{log}.json")):
            path.unlink(missing_ok=True)
        told = {"arguments": arguments, "out": str(out), "log": str(log), **job}
        print(json.dumps(told), file=self.server.stdin, flush=True)
        answer = self.server.stdout.readline()
        assert answer, "the server of crashes.py is gone"
        return {**json.loads(answer), "text": log.read_text()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    root = tmp_path_factory.mktemp("crashes")
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(root / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "XDG_CACHE_HOME": str(root / "statistics"),
    }
    environment.pop("MAPS_VLA_DEBUG", None)
    command = [sys.executable, "-m", "tests.octo_integration.train.crashes"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, cwd=ROOT, **pipes) as server:
        yield Runs(root, server)
        server.stdin.close()


class Straight(NamedTuple):
    """A run without an interruption: its folder, its changes of files, its seconds from the first step on."""

    out: Path
    events: int
    seconds: float


@pytest.fixture(scope="module")
def straight(runs: Runs) -> Straight:
    answer = runs(runs.root / "straight")
    assert answer["code"] == 0, answer["text"]
    return Straight(runs.root / "straight", answer["events"], answer["seconds"])


def saved(out: Path) -> Any:
    """All leaves of the last checkpoint: parameters, moments, counts, fingerprints."""
    path = out.absolute() / "checkpoints" / str(STEPS) / whole.ITEM
    with ocp.PyTreeCheckpointer() as checkpointer:
        leaves = checkpointer.metadata(path).item_metadata.tree
        on_the_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), leaves)
        return checkpointer.restore(path, restore_args=on_the_host)


def assert_like_straight(out: Path, straight: Straight) -> None:
    jax.tree.map(np.testing.assert_array_equal, saved(out), saved(straight.out))
    records = [
        [{**record, "steps_per_second": 0} for line in text.splitlines() if "loss" in (record := json.loads(line))]
        for text in ((run / "metrics.jsonl").read_text() for run in (out, straight.out))
    ]
    assert records[0] == records[1] and len(records[0]) == STEPS
    left = [
        {p.name for p in run.rglob("*") if "tmp" in p.name or p.suffix == whole.TORN} for run in (out, straight.out)
    ]
    assert left == [set(), set()]


def newest(out: Path) -> int:
    """The step of the newest checkpoint on disk, which must be whole, or 0."""
    steps = whole.steps_in(out / "checkpoints")
    assert not steps or whole.damage(out / "checkpoints" / str(steps[0])) is None
    return steps[0] if steps else 0


def resumed_at(answer: dict[str, Any]) -> int:
    """The step at which a run says that it goes on, or 0."""
    found = [line for line in answer["text"].splitlines() if line.startswith("resumed ")]
    return int(found[0].split(" at step ")[1].split()[0]) if found else 0


def has_begun(answer: dict[str, Any]) -> bool:
    """Whether there was a progress bar, which comes after the line that says where it goes on."""
    return "%|" in answer["text"]


def moments(straight: Straight, seed: int) -> Iterator[dict[str, Any]]:
    """When to kill: at the first step, then at changes of files (checkpoints, their renaming, logs) and at any time."""
    rng = random.Random(seed)
    yield {"step": 1}
    while True:
        yield {"event": rng.randrange(1, straight.events)}
        yield {"seconds": rng.uniform(0, straight.seconds)}
        yield {"step": rng.randrange(1, STEPS)}


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


def error_line(answer: dict[str, Any]) -> str:
    """The error, of which nothing but one line is told."""
    assert answer["code"] == 2 and "Traceback" not in answer["text"], answer["text"]
    (line,) = [line for line in answer["text"].splitlines() if "maps-vla finetune: " in line]
    return line[line.index("maps-vla finetune: ") :]


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
