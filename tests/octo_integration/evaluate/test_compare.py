"""Runs compared in pairs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octo_integration.cli import commands
from octo_integration.evaluate import record
from octo_integration.evaluate.compare import differences, lengths, paired
from octo_integration.evaluate.intervals import difference_interval, length_interval, paired_interval
from octo_integration.evaluate.record import Recorded
from octo_integration.evaluate.rollout import Episode, Outcome
from octo_integration.evaluate.runs import student_interval

SETTINGS = {"simulator": "metaworld", "seed": 0, "layouts": "all", "max_steps": None, "weights": "ab"}
TASKS = ("reach", "push", "door-open")


def evaluated(*outcomes: Sequence[int], shift: str = "none", **changes: Any) -> Recorded:
    """A run's outcomes of each task's episodes."""
    found = {
        Episode(task, shift, number): Outcome(bool(success), 10)
        for task, few in zip(TASKS, outcomes, strict=False)
        for number, success in enumerate(few)
    }
    return Recorded({**SETTINGS, **changes}, found)


FIRST = evaluated([1, 1, 1, 0], [1, 1, 0, 0], weights="cd")
SECOND = evaluated([1, 0, 0, 0], [1, 1, 0, 0])


def test_one_pair_of_runs_over_its_episodes_and_its_tasks() -> None:
    found = differences(paired([FIRST], [SECOND]), {"both": ["reach", "push"], "one": ["push"], "none": []})
    assert [(d.group, d.episodes, d.rates, d.difference) for d in found] == [
        ("reach", 4, (0.75, 0.25), 0.5),
        ("push", 4, (0.5, 0.5), 0.0),
        ("both", 8, (0.625, 0.375), 0.25),
    ]
    reach, push = ([1, 1, 1, 0], [1, 0, 0, 0]), ([1, 1, 0, 0],) * 2
    assert [d.interval for d in found] == [
        paired_interval(*reach),
        paired_interval(*push),
        difference_interval([reach, push]),
    ]


def test_several_pairs_of_runs_over_the_runs() -> None:
    other, third = evaluated([1, 1, 1, 1]), evaluated([0, 1, 1, 0])
    pairs = paired([FIRST, other, third], [SECOND, SECOND, third])
    (reach,) = differences(pairs, {})
    assert reach.episodes == 12 and reach.difference == pytest.approx((0.5 + 0.75 + 0) / 3)
    assert reach.interval == student_interval([0.5, 0.75, 0.0])[1:3]


def test_only_episodes_that_all_have_and_every_shift_by_itself() -> None:
    texture = evaluated([0, 0], shift="texture").outcomes
    longer = FIRST._replace(outcomes={**FIRST.outcomes, **texture})
    (pair,) = paired([longer], [evaluated([1, 0])])
    assert [*pair[0]] == [Episode("reach", "none", number) for number in (0, 1)]
    both = SECOND._replace(outcomes={**SECOND.outcomes, **texture})
    found = differences(paired([longer], [both]), {})
    assert [(d.group, d.shift) for d in found] == [("reach", "none"), ("push", "none"), ("reach", "texture")]


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ([FIRST], [], "1 runs against 0; give as many"),
        ([FIRST], [evaluated([1], seed=1)], r"seed is not the same in all evaluations \(\[0, 1\]\)"),
        ([FIRST], [evaluated([1], max_steps=9)], "max_steps is not the same"),
        ([FIRST], [evaluated([1], shift="light")], "no episode in common"),
    ],
)
def test_what_cannot_be_paired(first: list[Recorded], second: list[Recorded], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paired(first, second)


def test_the_command_prints_both_rates_and_the_points_between(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, run in {"maps": FIRST, "adam": SECOND}.items():
        with record.recording(tmp_path / name / "evaluations" / "x.jsonl", run.settings, {}) as opened:
            for episode, outcome in run.outcomes.items():
                opened.add(episode, outcome)
    runs = [str(tmp_path / name) for name in ("maps", "adam")]
    assert commands.main(["compare", runs[0], "--against", runs[1]]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[1][:6] == ["reach", "none", "4", "75%", "25%", "+50.0"]
    assert rows[2][:6] == ["push", "none", "4", "50%", "50%", "+0.0"]
    assert commands.main(["compare", runs[0], "--against", str(tmp_path / "other")]) == commands.BAD_INPUT
    assert "other" in capsys.readouterr().err


def chains(*reached: int, **changes: Any) -> Recorded:
    """A run's chains of five."""
    found = {Episode("chains/D", "none", n): Outcome(r == 5, 9, r) for n, r in enumerate(reached)}
    return Recorded({**SETTINGS, "simulator": "calvin", **changes}, found)


def test_chains_are_compared_by_their_length() -> None:
    pairs = paired([chains(5, 2, 0, 1)], [chains(3, 1, 0, 2)])
    (one,) = lengths(pairs)
    assert one[:5] == ("chains/D", "none", 4, (2.0, 1.5), 0.5)
    assert one.interval == student_interval([2, 1, 0, -1, 1, -1])[1:3]
    assert differences(pairs, {})[0].rates == (0.25, 0.0)  # all five of them
    (three,) = lengths(paired([chains(5, 2), chains(1, 1), chains(0, 0)], [chains(3, 1), chains(2, 1), chains(0, 1)]))
    assert three.episodes == 6 and three.difference == pytest.approx(1 / 6)
    assert three.interval == pytest.approx(student_interval([1.5, -0.5, -0.5])[1:3])
    assert lengths(paired([FIRST], [SECOND])) == []


def test_the_command_prints_the_lengths_of_chains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = []
    for name, run in {"maps": chains(5, 2, 0, 1), "adam": chains(3, 1, 0, 2)}.items():
        files.append(str(tmp_path / f"{name}.jsonl"))
        with record.recording(Path(files[-1]), run.settings, {}) as opened:
            for episode, outcome in run.outcomes.items():
                opened.add(episode, outcome)
    assert commands.main(["compare", files[0], "--against", files[1]]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("chains/D, none: mean length 2.00 against 1.50, +0.50 (95 % ") and last.endswith("4 pairs.")


def test_intervals_of_lengths_hold_what_they_say() -> None:
    rng = np.random.default_rng(0)
    for p, q, n in ((0.7, 0.5, 20), (0.1, 0.1, 10), (0.02, 0.02, 50)):
        expected = [sum(rate**k for k in range(1, 6)) for rate in (p, q)]
        held = 0
        for _ in range(2000):
            first, second = (np.minimum(rng.geometric(1 - rate, n) - 1, 5) for rate in (p, q))
            low, high = length_interval(list(first - second))
            held += low <= expected[0] - expected[1] <= high
        assert held / 2000 > 0.94, (p, q, n)


def test_paired_intervals_hold_what_they_say() -> None:
    """Bonett and Price's hold the truth in 94 % of draws or more, also where the sides hardly ever differ."""
    rng = np.random.default_rng(0)
    for p, q, n in ((0.3, 0.1, 20), (0.02, 0.02, 50), (0.5, 0.2, 10)):
        held = 0
        for _ in range(2000):
            kind = rng.choice(3, size=n, p=[p, q, 1 - p - q])
            low, high = paired_interval(list(kind == 0), list(kind == 1))
            held += low <= p - q <= high
        assert held / 2000 > 0.94, (p, q, n)
