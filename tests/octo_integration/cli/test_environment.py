"""What a command's process sets before JAX is imported: quiet, compiled programs kept; and who is left alone."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from octo_integration.cli import commands, environment
from tests.octo_integration import child

NAMES = ("JAX_COMPILATION_CACHE_DIR", "TF_CPP_MIN_LOG_LEVEL")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in (*NAMES, "MAPS_VLA_DEBUG"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    return tmp_path


def test_programs_are_kept_beside_the_statistics_where_only_their_owner_writes(cache):
    environment.prepare()
    folder = Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    assert folder == environment.compiled() and folder.parent == cache / "maps_vla"
    assert stat.S_IMODE(folder.stat().st_mode) & 0o077 == 0
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "3"


def test_what_the_user_has_set_stands(cache, monkeypatch):
    for name, value in zip(NAMES, ("elsewhere", "0")):
        monkeypatch.setenv(name, value)
    environment.prepare()
    assert [os.environ[name] for name in NAMES] == ["elsewhere", "0"]
    assert not (cache / "maps_vla").exists()


def test_another_processor_has_programs_of_its_own(cache, monkeypatch):
    before = environment.compiled()
    monkeypatch.setattr(environment.Path, "read_text", lambda _: "processor: 0\nflags\t\t: fpu sse2\n")
    assert environment.compiled() != before and environment.compiled().parent == before.parent


def test_a_cache_that_cannot_be_written_is_no_error(cache):
    (cache / "maps_vla").write_text("a file")
    environment.prepare()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


def test_the_oldest_programs_go_when_they_are_too_many(cache, monkeypatch):
    monkeypatch.setattr(environment, "LARGEST", 250)
    environment.prepare()
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    for age, name in enumerate("dcba"):
        path = environment.compiled() / name
        path.write_bytes(bytes(100))
        os.utime(path, (1000 - age, 1000 - age))
    environment.prepare()
    assert sorted(path.name for path in environment.compiled().iterdir()) == ["c", "d"]


def test_a_program_that_calls_main_keeps_its_environment(cache, capsys):
    commands.main(["plot", str(cache / "absent")])
    assert not set(NAMES) & os.environ.keys() and not (cache / "maps_vla").exists()


def command(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`maps-vla` in a process of its own, with its caches under `root`."""
    told = child.environment(root)
    del told["JAX_COMPILATION_CACHE_DIR"]
    started = [sys.executable, "-m", "octo_integration.cli.commands", *arguments]
    return subprocess.run(started, env=told, cwd=child.ROOT, capture_output=True, text=True, timeout=500, check=True)


def test_programs_that_were_kept_give_the_same_run_though_one_is_torn(tmp_path):
    """The second command takes what the first has compiled, but for the largest program, which a kill cut short."""
    options = ["--data.batch-size", "2", "--optimizer.steps", "2", "--eval-splits", "--log-every", "1"]
    found, saved = [], []
    for number in "01":
        out = tmp_path / number
        done = command(tmp_path, "finetune", "--out", str(out), *options)
        assert done.stdout.startswith("devices: ") and f"next: maps-vla plot {out}" in done.stdout
        assert "compiling the first step …" in done.stderr
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        saved.append(([{**line, "steps_per_second": 0} for line in lines], (out / "drift.json").read_text()))
        programs = list((tmp_path / "statistics/maps_vla").glob("compiled-*/*-cache"))
        found.append(set(programs))
        largest = max(programs, key=lambda path: path.stat().st_size)
        os.truncate(largest, largest.stat().st_size // 2)
    assert found[0] == found[1] and len(found[0]) > 5  # nothing else was compiled anew
    assert saved[0] == saved[1]
