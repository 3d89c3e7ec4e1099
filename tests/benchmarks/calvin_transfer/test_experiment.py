"""The order of the steps, and what becomes of a run that was stopped."""

import json
from pathlib import Path

import pytest

from benchmarks.calvin_transfer import experiment, plan
from benchmarks.calvin_transfer.experiment import Record, Step, Stopped, read, run, steps
from octo_integration.collect.demonstrations import splits
from octo_integration.simulators.calvin.rules import chain


def test_chains_begin_with_two_tasks_that_are_learnt() -> None:
    assert all(set(chain(number).tasks[:2]) <= set(plan.TASKS) for number in plan.CHAINS)


def test_the_errors_are_of_the_splits_that_are_collected(tmp_path: Path) -> None:
    config = plan.finetune_config(tmp_path, "maps", 0)
    assert splits(plan.collect_config(tmp_path)) == (config.data.split, *plan.SPLITS.values())
    assert config.data.path == plan.collect_config(tmp_path).out


def test_pairs_are_complete_one_after_the_other() -> None:
    order = list(steps())
    assert len(order) == len(set(order)) == 3 * 2 * (1 + 4 + 1)
    assert [step.seed for step in order] == sorted(step.seed for step in order)
    assert order[:2] == [Step("adam", 0, "error"), Step("adam", 0, "success", "A")]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    """What is measured, by nobody in no time."""
    seen: list[Step] = []

    def measure(out: Path, step: Step) -> Record:
        if len(seen) == 3:
            seen.append(step)
            raise Stopped(15)
        seen.append(step)
        return {"value": len(seen)}

    for what in experiment.MEASURES:
        monkeypatch.setitem(experiment.MEASURES, what, measure)
    monkeypatch.setattr(experiment, "check_installed", lambda simulator, tasks: None)
    monkeypatch.setattr(experiment, "collect", lambda config: Path(config.out).mkdir())
    return seen


def test_the_same_command_goes_on_where_it_was_stopped(measured: list[Step], tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    assert run(tmp_path, results) == 128 + 15
    assert list(read(results)) == measured[:3]
    assert run(tmp_path, results) == 0
    assert measured[4:] == list(steps())[3:]
    assert list(read(results)) == list(steps())
    count = len(measured)
    assert run(tmp_path, results) == 0 and len(measured) == count


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    file.write_text(json.dumps(Step("adam", 0, "error")._asdict()) + '\n{"method": "adam", "se')
    with pytest.raises(ValueError, match=r"results.jsonl:2 is no line of a step .* delete it, and run again"):
        read(file)
