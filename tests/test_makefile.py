"""What `make test` runs on the newest JAX, and what it says where it cannot."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make")


def make(*arguments: str, pythons: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYENV_ROOT": str(pythons), "MAKEFLAGS": ""}
    return subprocess.run(["make", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)


def test_pythons_that_are_not_here_are_named_loudly_and_no_error(tmp_path: Path) -> None:
    done = make("newest", "NEWEST=9.98-newest 9.99-newest", pythons=tmp_path)
    assert done.returncode == 0 and "pytest" not in done.stdout
    assert [line for line in done.stderr.splitlines() if line] == [
        f"!!! NOT TESTED: the newest JAX with Python {version}, which is not here. !!!" for version in ("9.98", "9.99")
    ]


def test_a_python_of_pyenv_runs_the_core_and_the_integration_though_it_is_not_chosen(tmp_path: Path) -> None:
    python = tmp_path / "versions/9.99.1/bin/python9.99"
    python.parent.mkdir(parents=True)
    python.touch()
    commands = make("--dry-run", "newest", "NEWEST=9.99-newest", pythons=tmp_path).stdout.replace("\\\n", " ")
    assert f"{python} -m venv .venv-python9.99-newest" in commands
    assert "newest.txt" in commands
    (tests,) = [line.split() for line in commands.splitlines() if "-m pytest" in line]
    named = [ROOT / word.partition("::")[0] for word in tests if word.startswith("tests/")]
    assert ROOT / "tests/maps_optax" in named and all(path.exists() for path in named)
    assert {path.parts[len(ROOT.parts) + 2] for path in named[1:]} >= {"model", "weights", "train"}


def test_only_the_newest_python_runs_the_integration_too(tmp_path: Path) -> None:
    for version in ("9.98", "9.99"):
        python = tmp_path / f"versions/{version}.1/bin/python{version}"
        python.parent.mkdir(parents=True)
        python.touch()
    commands = make("--dry-run", "newest", "NEWEST=9.98-newest 9.99-newest", pythons=tmp_path).stdout
    runs = [line for line in commands.replace("\\\n", " ").splitlines() if "-m pytest" in line]
    assert [".venv-python9.98-newest" in runs[0], ".venv-python9.99-newest" in runs[1]] == [True, True]
    assert ["tests/maps_optax" in run for run in runs] == [True, True]
    assert ["tests/octo_integration" in run for run in runs] == [False, True]


@pytest.fixture
def interpreter(tmp_path: Path) -> Callable[[str], str]:
    """interpreter("3.10") -> the path of a program that says it is that Python."""

    def call(version: str) -> str:
        path = tmp_path / "stub"
        path.write_text(f"#!/bin/sh\necho {version}\n")
        path.chmod(0o755)
        return str(path)

    return call


@pytest.mark.parametrize(
    ("version", "constraints"), [("3.10", "python3.10"), ("3.11", "main"), ("3.12", "main"), ("3.13", "main")]
)
def test_a_python_gets_the_versions_that_it_can_have(
    interpreter, tmp_path: Path, version: str, constraints: str
) -> None:
    python = interpreter(version)
    commands = make("--dry-run", "install", f"PYTHON={python}", f"VENV={tmp_path}/venv", pythons=tmp_path).stdout
    assert f"{python} -m venv {tmp_path}/venv\n" in commands
    assert f"-c constraints/{constraints}.txt -e '.[vla,sim,libero,serve,convert,dev,docs]'" in commands


@pytest.mark.parametrize(
    ("version", "others", "torchs"), [("3.10", True, False), ("3.11", True, True), ("3.13", False, True)]
)
def test_what_a_python_cannot_have_is_tested_with_another(
    interpreter, tmp_path: Path, version: str, others: bool, torchs: bool
) -> None:
    python, another = interpreter(version), tmp_path / "versions/3.11.1/bin/python3.11"
    another.parent.mkdir(parents=True)
    another.touch()
    new = f"LOWEST={tmp_path}/lowest", f"PARITY={tmp_path}/parity"
    commands = make("--dry-run", "test", f"PYTHON={python}", "NEWEST=", *new, pythons=tmp_path).stdout
    assert f"{python if others else another} -m venv {tmp_path}/lowest\n" in commands
    assert f"{python if torchs else another} -m venv {tmp_path}/parity\n" in commands
    assert f"PARITY_PYTHON={tmp_path}/parity/bin/python " in commands and "NOT TESTED" not in commands


def test_what_no_python_here_can_have_is_named_loudly_and_no_error(interpreter, tmp_path: Path) -> None:
    commands = make(
        "--dry-run", "test", f"PYTHON={interpreter('3.9')}", "NEWEST=", "OCTO=9.9", "TORCH=9.9", pythons=tmp_path
    ).stdout
    assert commands.count("NOT TESTED") == 2 and "PARITY_PYTHON" not in commands
    done = make("lowest", "OCTO=9.9", pythons=tmp_path)
    assert done.returncode == 0
    assert done.stderr.strip() == "!!! NOT TESTED: the oldest versions with a Python of 9.9, which is not here. !!!"


def test_the_tests_of_every_day_end_with_the_newest() -> None:
    assert make("--dry-run", "test", "NEWEST=9.99-newest", pythons=ROOT).stdout.count("NOT TESTED") == 1
