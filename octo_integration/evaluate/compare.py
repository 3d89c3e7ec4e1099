"""Two policies, or the runs of two methods, compared in pairs: on the same episodes, from the same initial states."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from octo_integration.evaluate.intervals import difference_interval, length_interval
from octo_integration.evaluate.record import Recorded
from octo_integration.evaluate.rollout import Episode, Outcome
from octo_integration.evaluate.runs import student_interval

# What must be alike for episodes of one name to start alike, and to end in the same number of steps.
SHARED = ("simulator", "seed", "layouts", "max_steps")

Outcomes = Mapping[Episode, Outcome]


class Difference(NamedTuple):
    """Success, or the length of chains, of two sides on the episodes that both have.

    Attributes:
      group: a task, or a suite of them: its rates are means over tasks.
      episodes: pairs of them, over all runs.
      rates: of the first and the second side; mean lengths, of chains.
      difference, interval: first minus second, and its 95 % confidence interval.
    """

    group: str
    shift: str
    episodes: int
    rates: tuple[float, float]
    difference: float
    interval: tuple[float, float]


def paired(first: Sequence[Recorded], second: Sequence[Recorded]) -> list[tuple[Outcomes, Outcomes]]:
    """The runs of both sides in pairs, in the order given, with the episodes that all of them have.

    Raises:
      ValueError: not as many runs on either side, nothing in common, or other initial states or limits.
    """
    if not first or len(first) != len(second):
        raise ValueError(f"{len(first)} runs against {len(second)}; give as many, in an order that pairs them.")
    runs = [*first, *second]
    for name in SHARED:
        values = [run.settings.get(name) for run in runs]
        if any(value != values[0] for value in values):
            raise ValueError(f"{name} is not the same in all evaluations ({values}); these cannot be paired.")
    common = [episode for episode in first[0].outcomes if all(episode in run.outcomes for run in runs)]
    if not common:
        raise ValueError("the evaluations have no episode in common; evaluate the same tasks and shifts.")

    def kept(run: Recorded) -> Outcomes:
        return {episode: run.outcomes[episode] for episode in common}

    return [(kept(a), kept(b)) for a, b in zip(first, second, strict=True)]


def differences(pairs: Sequence[tuple[Outcomes, Outcomes]], suites: Mapping[str, Sequence[str]]) -> list[Difference]:
    """Per task, and per suite of several tasks, under every shift.

    Of one pair of runs, a task's interval is over its pairs of episodes, and a suite's over its tasks
    (`difference_interval`): what would be seen again with other initial states. Of several pairs, every interval is
    over them (`student_interval`): what would be seen again with other runs.

    Args:
      pairs: of `paired`.
      suites: name -> tasks; those of them with episodes are taken.
    """
    episodes = list(pairs[0][0])
    found = []
    for shift in dict.fromkeys(episode.shift for episode in episodes):
        tasks = list(dict.fromkeys(episode.task for episode in episodes if episode.shift == shift))
        groups = {task: [task] for task in tasks}
        groups |= {name: few for name, all_ in suites.items() if len(few := [t for t in tasks if t in all_]) > 1}
        for group, members in groups.items():
            found.append(_difference(group, shift, [_split(pair, members, shift) for pair in pairs]))
    return found


_Task = tuple[list[bool], list[bool]]


def _split(pair: tuple[Outcomes, Outcomes], tasks: Sequence[str], shift: str) -> list[_Task]:
    first, second = pair
    chosen = [[e for e in first if (e.task, e.shift) == (task, shift)] for task in tasks]
    return [([first[e].success for e in few], [second[e].success for e in few]) for few in chosen]


def _difference(group: str, shift: str, pairs: Sequence[Sequence[_Task]]) -> Difference:
    def rate(tasks: Sequence[_Task], side: int) -> float:
        return sum(sum(task[side]) / len(task[side]) for task in tasks) / len(tasks)

    first, second = ([rate(tasks, side) for tasks in pairs] for side in (0, 1))
    gaps = [a - b for a, b in zip(first, second, strict=True)]
    interval = difference_interval(pairs[0]) if len(pairs) == 1 else student_interval(gaps)[1:3]
    n = len(pairs)
    episodes = sum(len(task[0]) for tasks in pairs for task in tasks)
    return Difference(group, shift, episodes, (sum(first) / n, sum(second) / n), sum(gaps) / n, interval)


def lengths(pairs: Sequence[tuple[Outcomes, Outcomes]]) -> list[Difference]:
    """Of every task of several stages, under every shift: how many were done in a row.

    Of one pair of runs, the interval is over its episodes (`length_interval`); of several, over them.

    Args:
      pairs: of `paired`.
    """
    chosen: dict[tuple[str, str], list[Episode]] = {}
    for episode in pairs[0][0]:
        chosen.setdefault((episode.task, episode.shift), []).append(episode)
    found = []
    for (task, shift), episodes in chosen.items():
        sides = [[[run[e].reached for e in episodes] for run in pair] for pair in pairs]
        if any(reached is None for pair in sides for run in pair for reached in run):
            continue
        numbers = np.array(sides, float)  # pair, side, episode
        first, second = numbers.mean((0, 2)).tolist()
        gaps = numbers[:, 0] - numbers[:, 1]
        interval = length_interval(gaps[0]) if len(pairs) == 1 else student_interval(gaps.mean(1))[1:3]
        found.append(Difference(task, shift, gaps.size, (first, second), first - second, interval))
    return found
