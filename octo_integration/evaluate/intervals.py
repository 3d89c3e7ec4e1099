"""Confidence intervals of success rates and of their differences, within a run; `runs` has those over runs."""

import math
from collections.abc import Sequence

from octo_integration.evaluate.runs import student_interval

Z_95 = 1.959964  # 97.5th percentile of the normal distribution


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """95 % confidence interval of a rate: the rates p with |successes/n - p| <= z sqrt(p (1 - p) / n).

    E. B. Wilson, JASA 22 (1927). Unlike the normal approximation it is right for few trials and for 0 or n successes.

    Raises:
      ValueError: no trials, or not 0 <= successes <= n.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} trials; give 0 <= successes <= n and n >= 1.")
    rate, z2 = successes / n, Z_95**2
    centre = rate + z2 / (2 * n)
    half = Z_95 * math.sqrt(rate * (1 - rate) / n + z2 / (4 * n * n))
    low, high = ((centre + sign * half) / (1 + z2 / n) for sign in (-1, 1))
    # Rounding would leave 0 and 1 a hair inside.
    return (0.0 if successes == 0 else low, 1.0 if successes == n else high)


def rate_interval(tasks: Sequence[Sequence[bool]]) -> tuple[float, float]:
    """95 % confidence interval of the success rate over tasks like these: their mean, each task weighing the same.

    Episodes of a task resemble one another, so the tasks' rates are what scatters (`student_interval`). A few tasks may
    agree by chance, so it is never narrower than Wilson's of all episodes, which takes them for unrelated.
    """
    outcomes = [outcome for task in tasks for outcome in task]
    low, high = wilson_interval(sum(outcomes), len(outcomes))
    if len(tasks) < 2:
        return low, high
    wide = student_interval([sum(task) / len(task) for task in tasks])
    return max(0.0, min(low, wide.low)), min(1.0, max(high, wide.high))


def paired_interval(first: Sequence[bool], second: Sequence[bool]) -> tuple[float, float]:
    """95 % confidence interval of rate(first) - rate(second), outcomes of the same episodes in the same order.

    D. G. Bonett and R. M. Price, J. Educ. Behav. Stat. 37 (2012): Wald's, with one episode of either kind more that
    only one of the two does; right for few episodes, and where the two never differ.

    Raises:
      ValueError: they are not of one length, or empty.
    """
    n = len(first)
    if n == 0 or n != len(second):
        raise ValueError(f"{n} and {len(second)} outcomes; give pairs.")
    only = [sum(a and not b for a, b in zip(x, y, strict=True)) for x, y in ((first, second), (second, first))]
    p, q = ((count + 1) / (n + 2) for count in only)
    half = Z_95 * math.sqrt((p + q - (p - q) ** 2) / (n + 2))
    return max(-1.0, p - q - half), min(1.0, p - q + half)


def length_interval(gaps: Sequence[float]) -> tuple[float, float]:
    """95 % confidence interval of the mean difference in the length of the same chains.

    As `paired_interval`, with one chain more of either kind, one task longer and one shorter, so that it has a width
    where the two never differ; Student's t.
    """
    return student_interval([*gaps, 1.0, -1.0])[1:3]


def difference_interval(tasks: Sequence[tuple[Sequence[bool], Sequence[bool]]]) -> tuple[float, float]:
    """95 % confidence interval of the mean over tasks of rate(first) - rate(second), as `rate_interval`'s."""
    first, second = ([outcome for pair in tasks for outcome in pair[side]] for side in (0, 1))
    low, high = paired_interval(first, second)
    if len(tasks) < 2:
        return low, high
    wide = student_interval([sum(a) / len(a) - sum(b) / len(b) for a, b in tasks])
    return max(-1.0, min(low, wide.low)), min(1.0, max(high, wide.high))
