"""The numbers of the guide are those of the committed lines."""

import collections
import json

import pytest

from benchmarks.simulators import calvin, throughput
from octo_integration.evaluate.intervals import wilson_interval

HERE = throughput.RESULTS.parent
GUIDE = (HERE / "README.md").read_text().splitlines()


def test_the_policys_successes() -> None:
    head, *lines = map(json.loads, (HERE / "policy.jsonl").read_text().splitlines())
    assert (head["evaluation"]["simulator"], head["evaluation"]["step"]) == ("libero", 1500)
    tried: dict[str, dict[int, tuple[bool, int]]] = collections.defaultdict(dict)
    for line in lines:
        tried[line["task"]][line["number"]] = line["success"], line["steps"]
    assert len(tried) == 2
    for task, episodes in tried.items():
        assert sorted(episodes) == list(range(20))
        steps = [count for success, count in episodes.values() if success]
        low, high = wilson_interval(len(steps), 20)
        found = f"{len(steps)}/20 | {100 * low:.0f} % to {100 * high:.0f} % | {min(steps)} to {max(steps)} |"
        (row,) = [row for row in GUIDE if row.startswith(f"| `{task}` |")]
        assert row.endswith(found)


def test_the_throughput(capsys: pytest.CaptureFixture[str]) -> None:
    throughput.main(throughput.Config(table=True))
    table = capsys.readouterr().out.splitlines()
    assert len(table) > 6 and not set(table) - set(GUIDE)


def test_the_successes_of_calvins_expert(capsys: pytest.CaptureFixture[str]) -> None:
    calvin.main(calvin.Config(table=True))
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 2 + 34 + 1 and not set(table) - set((HERE / "calvin.md").read_text().splitlines())
