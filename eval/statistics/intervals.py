"""Intervals of a mean and of a proportion.

    t         mean +- t(1 - a/2; n - 1) * stderr                                              (Student 1908)
    Wilson    (p + z^2/2n +- z sqrt(p (1 - p)/n + z^2/4n^2)) / (1 + z^2/n)                    (Wilson 1927, JASA 22)

Below a few hundred items a proportion needs Wilson's: p +- z * stderr is too short, and empty at 0 and 1 (Bowyer et
al., arXiv 2503.01747).
"""

import math
from typing import NamedTuple

from eval.statistics.distributions import normal_quantile, student_quantile

LEVEL = 0.95


class Interval(NamedTuple):
    """A two-sided interval; as a tuple it is (low, high)."""

    low: float
    high: float


def student_interval(mean: float, stderr: float, n: int, level: float = LEVEL) -> Interval:
    """Return the t interval of a mean of `n` independent values.

    >>> low, high = student_interval(7.0, 0.2, 80)
    >>> round(low, 3), round(high, 3)
    (6.602, 7.398)
    """
    margin = student_quantile((1 + level) / 2, n - 1) * stderr
    return Interval(mean - margin, mean + margin)


def wilson_interval(num_right: int, n: int, level: float = LEVEL) -> Interval:
    """Return Wilson's score interval of a proportion. Raises ValueError unless 0 <= num_right <= n and n > 0.

    >>> low, high = wilson_interval(15, 20)
    >>> round(low, 3), round(high, 3)
    (0.531, 0.888)
    """
    if not 0 <= num_right <= n or n == 0:
        raise ValueError(f"{num_right} of {n} items: give 0 <= num_right <= n and n > 0")
    z = normal_quantile((1 + level) / 2)
    share = num_right / n
    centre = share + z * z / (2 * n)
    margin = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return Interval(max(0.0, (centre - margin) / scale), min(1.0, (centre + margin) / scale))
