"""The interval of a published value. Pure.

share of n right items    Wilson's, where the value is one: n times it is a whole number
others                    normal, from the standard error
"""

from dataclasses import dataclass

from eval.compare.results import TaskResult
from eval.statistics.distributions import normal_quantile
from eval.statistics.intervals import LEVEL, Interval, wilson_interval

ROUNDING = 1e-6


@dataclass(frozen=True)
class PublishedInterval:
    """An interval at 95 % with its method, in the words of Every Eval Ever."""

    interval: Interval
    method: str


def task_interval(result: TaskResult) -> PublishedInterval | None:
    """Return the interval of a task's value; None if the result has neither items nor a standard error."""
    n = len(result.items) or result.num_items
    if n:
        num_right = result.value * n
        is_share = set(result.items.values()) <= {0.0, 1.0} and 0 <= result.value <= 1
        if is_share and abs(num_right - round(num_right)) < ROUNDING * n:
            return PublishedInterval(wilson_interval(round(num_right), n), "Wilson")
    return normal_interval(result.value, result.stderr)


def normal_interval(value: float, stderr: float | None) -> PublishedInterval | None:
    """Return value +- z stderr; None without a standard error."""
    if stderr is None:
        return None
    margin = normal_quantile((1 + LEVEL) / 2) * stderr
    return PublishedInterval(Interval(value - margin, value + margin), "normal")
