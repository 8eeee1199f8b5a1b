"""Rank correlation: the agreement of two measures on the order of the rounds. Pure.

spearman = Pearson correlation of the ranks, ties at their average rank      (Spearman 1904)
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from statistics import fmean


def average_ranks(values: Sequence[float]) -> list[float]:
    """Return the rank of each value, from 1; equal values share the mean of their ranks.

    >>> average_ranks([30, 10, 10])
    [3.0, 1.5, 1.5]
    """
    ordered = sorted(values)
    ranks = []
    for value in values:
        num_smaller = bisect_left(ordered, value)
        num_equal = bisect_right(ordered, value) - num_smaller  # the value itself included
        ranks.append(num_smaller + (num_equal + 1) / 2)
    return ranks


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation; None for fewer than two pairs or a constant side.

    Raises ValueError for sequences of different length.

    >>> spearman([1, 2, 3], [10, 30, 20])
    0.5
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} values cannot be paired with {len(second)}")
    if len(set(first)) < 2 or len(set(second)) < 2:
        return None
    x = _centred(average_ranks(first))
    y = _centred(average_ranks(second))
    covariance = math.fsum(a * b for a, b in zip(x, y, strict=True))
    return covariance / math.sqrt(math.fsum(a * a for a in x) * math.fsum(b * b for b in y))


def _centred(values: Sequence[float]) -> list[float]:
    middle = fmean(values)
    return [value - middle for value in values]
