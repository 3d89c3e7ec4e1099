"""The committed results: tables and text come from the committed lines."""

import re

import pytest

from benchmarks.generalization import noise, report, statistics
from benchmarks.generalization.processes import HERE


@pytest.fixture(scope="module")
def text():
    return report.report(statistics.read(HERE / "results.jsonl"), statistics.read_success(HERE / "success.jsonl"))


def test_the_tables_are_those_of_the_lines(text):
    assert (HERE / "tables.md").read_text() == f"# Tables of the study\n\n{text}"


def test_the_tables_of_the_guide_are_among_them(text):
    guide = [line for line in (HERE / "README.md").read_text().splitlines() if line.startswith("| ")]
    assert len(guide) > 20
    floor = noise.table(noise.read(HERE / "noise.jsonl"))
    assert not set(guide) - {*text.splitlines(), *floor.splitlines()}


def test_every_figure_is_shown_and_there(text):
    shown = set(re.findall(r"\((\w+\.png)\)", (HERE / "README.md").read_text()))
    assert shown == {path.name for path in HERE.glob("*.png")}
