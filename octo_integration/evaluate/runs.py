"""What a handful of training runs say: intervals over whole runs, and which of many survive.

The unit is the run. Episodes of a run share its luck (fresh weights, order of the data), so that counting them as
independent makes intervals too narrow, however many there are.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

LEVEL = 0.95


class Interval(NamedTuple):
    """A mean, its 95 % interval, the two-sided p against 0, and the degrees of freedom of Student's t."""

    value: float
    low: float
    high: float
    p: float
    freedom: float


def student_interval(differences: npt.ArrayLike, groups: Sequence[Hashable] | None = None) -> Interval:
    """Student's interval of the mean of one number per run: m ± t(n − 1) s / √n.

    Args:
      differences: f[n], of runs: one method minus another with the same seed, data and pretrained weights.
      groups: a label of each run: what runs share that is itself a draw (the pretrained model, say). Each group's mean
        is then one observation, n is their number, and the interval speaks of other groups too; without, of other runs
        that share the same.

    Returns:
      NaN where n is 1 or a difference is not finite, but for the value.
    """
    runs = np.asarray(differences, float)
    if groups is not None:
        labels = np.array([list(dict.fromkeys(groups)).index(g) for g in groups])
        runs = np.array([runs[labels == k].mean() for k in range(labels.max() + 1)])
    value, freedom = float(runs.mean()), len(runs) - 1
    if freedom < 1 or not np.isfinite(value):
        return Interval(value, np.nan, np.nan, np.nan, freedom)
    return _student(value, float(runs.var(ddof=1)) / len(runs), freedom)


def crossed_interval(differences: npt.ArrayLike) -> Interval:
    """The interval of a mean over two crossed draws: f[P, S], every pretrained model with every seed, say.

    With row mean square A, column mean square B and residual E, var = max(A + B − E, A, B) / PS, and Satterthwaite's
    freedom for A + B. Of 3 by 3 it covers 93 to 98.5 %, from no luck of rows and columns to much of theirs, where a t
    over all P · S runs as equals falls below 85 %.

    Raises:
      ValueError: not a table of at least 2 by 2.
    """
    table = np.asarray(differences, float)
    if table.ndim != 2 or min(table.shape) < 2:
        raise ValueError(f"crossed_interval: shape {table.shape}; give f[P, S] with P and S of at least 2.")
    rows, columns = table.shape
    value = float(table.mean())
    if not np.isfinite(value):
        return Interval(value, np.nan, np.nan, np.nan, np.nan)
    by_row, by_column = table.mean(1, keepdims=True), table.mean(0, keepdims=True)
    a, b = columns * float(by_row.var(ddof=1)), rows * float(by_column.var(ddof=1))
    e = float(np.square(table - by_row - by_column + value).sum()) / ((rows - 1) * (columns - 1))
    spread = a**2 / (rows - 1) + b**2 / (columns - 1)
    freedom = (a + b) ** 2 / spread if spread else float(rows * columns - 1)
    return _student(value, max(a + b - e, a, b) / table.size, freedom)


def survivors(p: npt.ArrayLike, rate: float = 1 - LEVEL) -> npt.NDArray[np.bool_]:
    """Which of the hypotheses behind `p` are rejected when at most `rate` of the rejected may be true (on average).

    Y. Benjamini and Y. Hochberg, JRSS B 57 (1995). NaN is no test, and does not count.
    """
    values = np.asarray(p, float)
    tests = np.flatnonzero(~np.isnan(values))
    order = tests[np.argsort(values[tests])]
    within = np.flatnonzero(values[order] <= rate * np.arange(1, len(order) + 1) / max(len(order), 1))
    found = np.zeros(values.shape, bool)
    found[order[: within.max() + 1 if len(within) else 0]] = True
    return found


def _student(value: float, variance: float, freedom: float) -> Interval:
    import scipy.special  # half a second, which a mere success rate need not wait for

    error = variance**0.5
    half = float(scipy.special.stdtrit(freedom, (1 + LEVEL) / 2)) * error
    if error:
        p = 2 * float(scipy.special.stdtr(freedom, -abs(value) / error))
    else:
        p = float(value == 0)
    return Interval(value, value - half, value + half, p, freedom)
