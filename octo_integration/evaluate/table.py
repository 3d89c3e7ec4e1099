"""Success rates as text."""

from collections.abc import Mapping, Sequence

from octo_integration.evaluate.compare import Difference
from octo_integration.evaluate.intervals import rate_interval
from octo_integration.evaluate.rollout import TaskResult
from octo_integration.evaluate.runs import student_interval

OVER_EPISODES = (
    "95 % intervals of this one run: a task's over its episodes (Wilson), a suite's over its tasks, never narrower "
    "than over all episodes."
)
OVER_PAIRS = (
    "95 % intervals of this one pair of runs: a task's over pairs of episodes (Bonett and Price), a suite's over its "
    "tasks."
)
OVER_RUNS = "95 % intervals over the {n} pairs of runs (Student's t)."


def success_table(results: Sequence[TaskResult], suites: Mapping[str, Sequence[str]]) -> str:
    """A row per task, and per suite of which several tasks were evaluated, under every shift."""
    rows = [
        (r.task, r.shift, f"{r.successes} of {len(r.outcomes)}", r.successes / len(r.outcomes), r.interval)
        for r in results
    ]
    for shift in dict.fromkeys(result.shift for result in results):
        for suite, tasks in suites.items():
            members = [r.outcomes for r in results if r.shift == shift and r.task in tasks]
            if len(members) > 1:
                rate = sum(sum(task) / len(task) for task in members) / len(members)
                rows.append((suite, shift, f"{len(members)} tasks", rate, rate_interval(members)))
    width = max(len("task"), *(len(row[0]) for row in rows)) + 2
    shift_width = max(len("shift"), *(len(row[1]) for row in rows)) + 2
    lines = [f"{'task':<{width}}{'shift':<{shift_width}}{'success':>12}{'rate':>8}   95 % interval"]
    for name, shift, count, rate, (low, high) in rows:
        lines.append(f"{name:<{width}}{shift:<{shift_width}}{count:>12}{rate:>8.0%}   {low:.0%} to {high:.0%}")
    return "\n".join([*lines, OVER_EPISODES, *map(_chain_line, (r for r in results if r.reached))])


def _chain_line(result: TaskResult) -> str:
    """Of a task of several stages: the mean number that was done in a row, and how often each was."""
    reached = result.reached
    mean, low, high, *_ = student_interval(reached)
    around = f" (95 % {max(0.0, low):.2f} to {high:.2f})" if len(reached) > 1 else ""
    shares = [f"{n}: {sum(r >= n for r in reached) / len(reached):.0%}" for n in range(1, max(reached) + 1)]
    rows = f"; in a row {', '.join(shares)}" if shares else ""
    return f"{result.task}, {result.shift}: mean length {mean:.2f}{around} of {len(reached)} episodes{rows}."


def difference_table(differences: Sequence[Difference], runs: int, lengths: Sequence[Difference] = ()) -> str:
    """A row per task and suite: both rates, their difference in percentage points; then a line per kind of chains."""
    width = max(len("task"), *(len(d.group) for d in differences)) + 2
    shift_width = max(len("shift"), *(len(d.shift) for d in differences)) + 2
    heads = f"{'pairs':>8}{'first':>8}{'second':>8}{'points':>9}   95 % interval"
    lines = [f"{'task':<{width}}{'shift':<{shift_width}}{heads}"]
    for d in differences:
        (a, b), (low, high) = d.rates, d.interval
        lines.append(
            f"{d.group:<{width}}{d.shift:<{shift_width}}{d.episodes:>8}{a:>8.0%}{b:>8.0%}{100 * d.difference:>+9.1f}"
            f"   {100 * low:+.1f} to {100 * high:+.1f}"
        )
    lines.append(OVER_PAIRS if runs == 1 else OVER_RUNS.format(n=runs))
    for d in lengths:
        (a, b), (low, high) = d.rates, d.interval
        lines.append(
            f"{d.group}, {d.shift}: mean length {a:.2f} against {b:.2f}, {d.difference:+.2f} (95 % {low:+.2f} to "
            f"{high:+.2f}) over {d.episodes} pairs."
        )
    return "\n".join(lines)
