"""A mean with its standard error: over items, over questions (clusters) and over subjects (strata).

    items       mean = sum(x) / n                      stderr = sd(x) / sqrt(n), sd with n - 1
    questions   mean = mean over questions of the mean of a question's values; stderr = the same, over questions
    subjects    mean = sum(w m)                        stderr = sqrt(sum(w^2 s^2 / n))

The turns and runs of one question are not independent, so the questions are what varies. For questions with equally
many values this is the cluster-robust standard error with the factor G / (G - 1) for G questions (Liang and Zeger 1986,
Biometrika 73; Miller, arXiv 2411.00640). With unequal numbers every question still counts the same.

m, s, n are a subject's mean, standard deviation and size. The weights w are n / N, as lm-eval weights MMLU today, or
1 / S for S subjects, as the old leaderboard did (Cochran 1977, Sampling Techniques, 5.3).
"""

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev, variance
from typing import TypeVar

from eval.statistics.intervals import LEVEL, Interval, student_interval

Key = TypeVar("Key", bound=Hashable)
Cluster = TypeVar("Cluster", bound=Hashable)


@dataclass(frozen=True)
class Estimate:
    """A mean of n independent units (items or questions); stderr is None for one unit."""

    mean: float
    stderr: float | None
    n: int

    def interval(self, level: float = LEVEL) -> Interval | None:
        """Return the t interval; None without a standard error."""
        if self.stderr is None:
            return None
        return student_interval(self.mean, self.stderr, self.n, level)


@dataclass(frozen=True)
class StratifiedEstimate:
    """Both means of a task with subjects; a standard error is None if a subject has one item."""

    by_size: float
    by_size_stderr: float | None
    by_subject: float
    by_subject_stderr: float | None
    num_items: int
    num_strata: int


def estimate(values: Iterable[float]) -> Estimate:
    """Return the mean and its standard error. Raises ValueError without values.

    >>> estimate([1.0, 0.0, 1.0, 0.0])
    Estimate(mean=0.5, stderr=0.28867513459481287, n=4)
    """
    units = list(values)
    if not units:
        raise ValueError("a mean needs at least one value")
    stderr = stdev(units) / math.sqrt(len(units)) if len(units) > 1 else None
    return Estimate(fmean(units), stderr, len(units))


def cluster_means(values: Mapping[Key, float], cluster_of: Callable[[Key], Cluster]) -> dict[Cluster, float]:
    """Return the mean of each cluster's values, in the order of first occurrence.

    >>> cluster_means({(81, 1): 8.0, (81, 2): 6.0, (82, 1): 9.0}, lambda key: key[0])
    {81: 7.0, 82: 9.0}
    """
    members: dict[Cluster, list[float]] = defaultdict(list)
    for key, value in values.items():
        members[cluster_of(key)].append(value)
    return {cluster: fmean(cluster_values) for cluster, cluster_values in members.items()}


def clustered_estimate(values: Mapping[Key, float], cluster_of: Callable[[Key], Hashable]) -> Estimate:
    """Return the mean over clusters and its standard error; n is the number of clusters.

    >>> clustered_estimate({(81, 1): 8.0, (81, 2): 6.0, (82, 1): 9.0}, lambda key: key[0])
    Estimate(mean=8.0, stderr=1.0, n=2)
    """
    return estimate(cluster_means(values, cluster_of).values())


def stratified_estimate(strata: Mapping[str, Sequence[float]]) -> StratifiedEstimate:
    """Return the mean weighted by size and the unweighted mean of the strata. Raises ValueError for an empty stratum.

    >>> result = stratified_estimate({"anatomy": [1.0, 0.0], "law": [1.0, 1.0, 1.0, 1.0, 0.0, 0.0]})
    >>> round(result.by_size, 4), round(result.by_subject, 4)
    (0.625, 0.5833)
    """
    num_items = sum(map(len, strata.values()))
    if not strata or not all(map(len, strata.values())):
        raise ValueError("every stratum needs at least one value")
    by_size = by_subject = 0.0
    size_variance = subject_variance = 0.0
    for values in strata.values():
        share = len(values) / num_items
        by_size += share * fmean(values)
        by_subject += fmean(values) / len(strata)
        mean_variance = variance(values) / len(values) if len(values) > 1 else math.inf
        size_variance += share**2 * mean_variance
        subject_variance += mean_variance / len(strata) ** 2
    return StratifiedEstimate(
        by_size, _root(size_variance), by_subject, _root(subject_variance), num_items, len(strata)
    )


def _root(total: float) -> float | None:
    return math.sqrt(total) if math.isfinite(total) else None
