"""The test that a later result loses more than a tolerance: one-sided, paired by item.

    H0: loss <= tolerance        loss = mean of (earlier - later) over items

A small p-value proves a loss above the tolerance. A loss that is merely unproven does not speak against a checkpoint.

| differences | tolerance | items | test |
|---|---|---|---|
| -1, 0, 1 | 0 | any | exact McNemar (conditional on the items that changed) |
| -1, 0, 1 | above 0 | to MAX_EXACT | exact unconditional score test: never above alpha |
| -1, 0, 1 | above 0 | more | score test of Tango and Nam |
| others | any | any | Student's t of (loss - tolerance) |

`python -m benchmarks.guard_test` measures size and power at 50, 200, 1319 and 14042 items; docs/peak.md has the
table. The interval is two-sided: Tango's for binary items, Student's for others.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from eval.statistics.distributions import normal_tail, student_tail
from eval.statistics.intervals import LEVEL, Interval, student_interval
from eval.statistics.mcnemar import mcnemar_p_value
from eval.statistics.paired_scores import exact_p_value, score_interval, score_statistic

MAX_EXACT = 2000


@dataclass(frozen=True)
class LossTest:
    """A loss as a fraction, its interval (None for one item), and the p-value that it exceeds the tolerance."""

    loss: float
    interval: Interval | None
    p_value: float
    num_items: int
    method: str


def loss_test(differences: Sequence[float], tolerance: float, level: float = LEVEL) -> LossTest:
    """Test H0: loss <= tolerance; `differences` are later minus earlier values per item, higher being better.

    Raises ValueError without items or for a tolerance outside of [0, 1).

    >>> loss_test([-1.0] * 6 + [1.0] + [0.0] * 13, tolerance=0.0).p_value
    0.0625
    >>> result = loss_test([-1.0] * 30 + [1.0] * 5 + [0.0] * 165, tolerance=0.02)
    >>> result.loss, result.method, round(result.p_value, 5)
    (0.125, 'exact score test', 0.00011)
    """
    if not differences or not 0 <= tolerance < 1:
        raise ValueError(
            f"{len(differences)} items and tolerance {tolerance}; a loss needs an item and 0 <= tolerance < 1"
        )
    if all(difference in (-1, 0, 1) for difference in differences):
        return _binary(differences, tolerance, level)
    return _student(differences, tolerance, level)


def _binary(differences: Sequence[float], tolerance: float, level: float) -> LossTest:
    n = len(differences)
    num_worse = sum(difference < 0 for difference in differences)
    num_better = sum(difference > 0 for difference in differences)
    if tolerance == 0:
        p_value = mcnemar_p_value(differences)
        method = "exact McNemar test"
    elif n <= MAX_EXACT:
        p_value = exact_p_value(num_worse, num_better, n, tolerance)
        method = "exact score test"
    else:
        p_value = normal_tail(float(score_statistic(num_worse, num_better, n, tolerance)))
        method = "score test"
    interval = score_interval(num_worse, num_better, n, level)
    return LossTest((num_worse - num_better) / n, interval, p_value, n, method)


def _student(differences: Sequence[float], tolerance: float, level: float) -> LossTest:
    """Test values between 0 and 1; if all items lose the same, each is a coin that fell on one side."""
    n = len(differences)
    loss = -fmean(differences)
    spread = stdev(differences) if n > 1 else 0.0
    if spread == 0:
        p_value = 0.5**n if loss > tolerance else 1.0
        return LossTest(loss, Interval(loss, loss) if n > 1 else None, p_value, n, "sign test")
    stderr = spread / math.sqrt(n)
    p_value = student_tail((loss - tolerance) / stderr, n - 1)
    return LossTest(loss, student_interval(loss, stderr, n, level), p_value, n, "t test")
