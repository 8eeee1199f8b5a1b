"""Rank correlation: do two measures order the rounds alike? Pure.

spearman = Pearson correlation of the ranks, ties at their average rank      (Spearman 1904)
"""

import math
from collections.abc import Sequence
from statistics import fmean


def average_ranks(values: Sequence[float]) -> list[float]:
    """Rank of each value from 1, equal values at the mean of their places.

    >>> average_ranks([30, 10, 10])
    [3.0, 1.5, 1.5]
    """
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2 for value in values
    ]


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation; None of fewer than two pairs, or where one side is constant.

    >>> spearman([1, 2, 3], [10, 30, 20])
    0.5
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} values cannot be paired with {len(second)}")
    if len(set(first)) < 2 or len(set(second)) < 2:
        return None
    x, y = _centred(average_ranks(first)), _centred(average_ranks(second))
    covariance = math.fsum(a * b for a, b in zip(x, y, strict=True))
    return covariance / math.sqrt(math.fsum(a * a for a in x) * math.fsum(b * b for b in y))


def _centred(values: Sequence[float]) -> list[float]:
    middle = fmean(values)
    return [value - middle for value in values]
