"""Confidence intervals: of a success rate, and of a mean of few values."""

import math

import numpy as np

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


def t_interval(values: np.ndarray) -> tuple[float, float]:
    """95 % confidence interval of the mean of a normal distribution that `values`, two or more, were drawn from.

    Right for few values: the quantile is that of Student's t, 4.3 for three of them.

    Raises:
      ValueError: fewer than two.
    """
    import scipy.special  # half a second, which a mere success rate need not wait for

    if len(values) < 2:
        raise ValueError(f"an interval needs two values or more, not {len(values)}.")
    half = float(scipy.special.stdtrit(len(values) - 1, 0.975) * values.std(ddof=1) / math.sqrt(len(values)))
    return float(values.mean()) - half, float(values.mean()) + half
