"""Tables from lines, and the page from the committed ones."""

import json
from pathlib import Path

import pytest

from benchmarks.calvin_transfer import plan, tables
from benchmarks.calvin_transfer.experiment import Record, Step
from octo_integration.evaluate.runs import student_interval

HERE = Path(tables.__file__).parent


def of_run(method: str, seed: int, error: float, ahead: int) -> dict[Step, Record]:
    """A run that does the first `ahead` tasks in D at the first start, none elsewhere."""
    lines: dict[Step, Record] = {Step(method, seed, "error"): {"l1": {"A-C": [0.1, 0.3], "D": [error, error + 0.2]}}}
    for scene in "ABCD":
        outcomes = {task: [scene == "D" and i < ahead, False] for i, task in enumerate(plan.TASKS)}
        lines[Step(method, seed, "success", scene)] = {"outcomes": outcomes}
    return lines | {Step(method, seed, "chains", "D"): {"reached": [0, 2, 1, 0]}}


def test_differences_are_of_pairs_of_seeds() -> None:
    lines = {}
    for seed, (adam, maps) in enumerate([(0.5, 0.4), (0.6, 0.3), (0.4, 0.4)]):
        lines |= of_run("adam", seed, adam, 0) | of_run("maps", seed, maps, 4)
    found = {row.split(" | ")[0].strip("| "): row for row in tables.differences(lines).splitlines()}
    _, low, high, p, _ = student_interval([-0.1, -0.3, 0.0])
    numbers = f"0.600 | 0.467 | -0.133 | {low:+.3f} to {high:+.3f} | {p:.2f} | 3 |"
    assert found["action error, D"] == f"| action error, D | {numbers}"
    assert found["gap (D − A–C)"].startswith("| gap (D − A–C) | 0.400 | 0.267 | -0.133 |")
    assert found["success, D"].startswith("| success, D | 0.000 | 0.250 | +0.250 |")
    assert found["length of chains, D"].startswith("| length of chains, D | 0.750 | 0.750 | +0.000 |")
    assert "| open_drawer | 0/18 | 0/18 | 0/6 | 3/6 |" in tables.tasks(lines)


def test_a_pair_that_is_not_complete_does_not_count() -> None:
    lines = of_run("adam", 0, 0.5, 0) | of_run("maps", 0, 0.4, 4) | of_run("adam", 1, 9.0, 0)
    del lines[Step("maps", 0, "chains", "D")]
    text = tables.differences(lines)
    assert "| action error, D | 0.600 | 0.500 | -0.100 | – | – | 1 |" in text
    assert "length of chains" not in text


def test_the_page_shows_the_committed_lines(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text((HERE / "README.md").read_text())
    tables.write(HERE / "results.jsonl", page)
    assert page.read_text() == (HERE / "README.md").read_text()


def test_before_the_first_run_the_page_says_so(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text(f"before\n{tables.BEGIN}old\n{tables.END}after\n")
    tables.write(tmp_path / "results.jsonl", page)
    assert page.read_text() == f"before\n{tables.BEGIN}\nNo run has ended yet.\n\n{tables.END}after\n"


def test_a_page_without_marks_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing")
    (tmp_path / "results.jsonl").write_text(json.dumps(Step("adam", 0, "error")._asdict()))
    with pytest.raises(ValueError, match="has no <!-- tables"):
        tables.write(tmp_path / "results.jsonl", page)
