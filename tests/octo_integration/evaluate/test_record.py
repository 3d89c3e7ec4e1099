"""The file of an evaluation: nothing is lost, nothing is there twice, and no other experiment gets into it."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from octo_integration.evaluate import record
from octo_integration.evaluate.rollout import Episode, Outcome

SETTINGS = {"simulator": "libero", "seed": 0, "step": 3, "weights": "ab"}
FIRST, SECOND = Episode("libero_spatial/3", "none", 0), Episode("libero_spatial/3", "none", 1)


def written(path: Path, **changes: Any) -> dict[Episode, Outcome]:
    with record.recording(path, {**SETTINGS, **changes}, {"run": "runs/a"}) as opened:
        return dict(opened.outcomes)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with record.recording(tmp_path / "x.jsonl", SETTINGS, {"run": "runs/a"}) as opened:
        opened.add(FIRST, Outcome(True, 87))
        opened.add(SECOND, Outcome(False, 220))
    return tmp_path / "x.jsonl"


def test_a_line_an_episode_after_one_that_says_what_was_evaluated(path: Path) -> None:
    head, *lines = map(json.loads, path.read_text().splitlines())
    assert head == {"evaluation": SETTINGS, "about": {"run": "runs/a"}}
    assert lines == [
        {"task": "libero_spatial/3", "shift": "none", "number": 0, "success": True, "steps": 87},
        {"task": "libero_spatial/3", "shift": "none", "number": 1, "success": False, "steps": 220},
    ]
    assert record.read(path) == (SETTINGS, {FIRST: Outcome(True, 87), SECOND: Outcome(False, 220)})
    assert sorted(file.name for file in path.parent.iterdir()) == ["x.jsonl"]


def test_how_many_stages_were_done_is_kept(path: Path) -> None:
    chain = Episode("chains/D", "none", 0)
    with record.recording(path, SETTINGS, {}) as opened:
        opened.add(chain, Outcome(False, 512, 2))
    assert json.loads(path.read_text().splitlines()[-1])["reached"] == 2
    assert record.read(path).outcomes[chain] == Outcome(False, 512, 2)


def test_a_torn_last_line_is_run_again_and_the_others_are_not(path: Path) -> None:
    whole = path.read_text()
    path.write_text(whole[:-9])
    assert written(path) == {FIRST: Outcome(True, 87)}
    with record.recording(path, SETTINGS, {}) as opened:
        opened.add(SECOND, Outcome(False, 220))
    assert path.read_text() == whole


def test_a_file_of_which_not_one_line_was_written_is_begun_again(path: Path) -> None:
    path.write_text('{"evaluation": {"simul')
    assert written(path) == {}
    assert record.read(path).settings == SETTINGS


@pytest.mark.parametrize("changes", [{"weights": "cd"}, {"step": 4}, {"seed": 1}])
def test_another_experiment_is_refused_and_has_a_file_of_its_own(path: Path, changes: dict[str, Any]) -> None:
    before = path.read_bytes()
    ((name, value),) = changes.items()
    with pytest.raises(ValueError, match=f"holds episodes with {name}={SETTINGS[name]!r}, not {value!r}; give another"):
        written(path, **changes)
    assert path.read_bytes() == before
    own, other = (record.default_path(Path("run"), {**SETTINGS, **more}) for more in ({}, changes))
    assert own != other and own.parent == Path("run/evaluations") and own.name.startswith("libero-step3-")


def test_two_processes_do_not_write_the_same_file(path: Path) -> None:
    with record.recording(path, SETTINGS, {}), pytest.raises(OSError, match="x.jsonl is in use by process"):
        written(path)


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"task": "a", "shift": "none", "number": 2, "success": 1, "steps": 3}',
        '{"task": "libero_spatial/3", "shift": "none", "number": 0, "success": true, "steps": 87}',
    ],
)
def test_damage_is_named(path: Path, line: str) -> None:
    with open(path, "a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match="x.jsonl: line 4 is not of an evaluation"):
        record.read(path)


def test_a_run_has_one_file_or_it_is_asked_which(path: Path, tmp_path: Path) -> None:
    assert record.find(path) == path
    with pytest.raises(FileNotFoundError, match="has no episodes; run maps-vla evaluate --run"):
        record.find(tmp_path)
    (tmp_path / "evaluations").mkdir()
    os.rename(path, tmp_path / "evaluations/a.jsonl")
    assert record.find(tmp_path).name == "a.jsonl"
    (tmp_path / "evaluations/b.jsonl").touch()
    with pytest.raises(ValueError, match=r"several evaluations; give one of .*a.jsonl, .*b.jsonl"):
        record.find(tmp_path)


def test_a_killed_evaluation_keeps_every_episode_that_had_ended(tmp_path: Path) -> None:
    code = f"""
        import os, signal
        from pathlib import Path
        from octo_integration.evaluate import record
        from octo_integration.evaluate.rollout import Episode, Outcome
        with record.recording(Path({str(tmp_path / "x.jsonl")!r}), {SETTINGS!r}, {{}}) as opened:
            for number in range(7):
                opened.add(Episode("a", "none", number), Outcome(True, number))
            os.kill(os.getpid(), signal.SIGKILL)
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert ended.returncode == -signal.SIGKILL
    found = written(tmp_path / "x.jsonl")
    assert found == {Episode("a", "none", number): Outcome(True, number) for number in range(7)}
