"""Percentile intervals of a mean, by resampling independent units: items, or the means of questions.

    draw k:    n units with replacement from the n units -> their mean m(k)
    interval:  the quantiles (1 - level) / 2 and (1 + level) / 2 of m(1), ..., m(K)

At level 0.95 these are the 2.5 % and 97.5 % quantiles. A quantile is Hyndman and Fan's definition 7, linear between
order statistics: with K sorted draws the quantile q lies at position (K - 1) q, counted from 0 (American Statistician
50, 1996). Turns are clustered by question: give `cluster_means` of the paired differences. Efron and Tibshirani 1993,
chapter 13.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from eval.statistics.intervals import LEVEL, Interval

NUM_DRAWS = 10_000
# Units drawn at once: 32 MiB of indices.
CHUNK = 4_000_000
# With at most this many distinct values, the counts of the values are drawn in place of the units.
MAX_DISTINCT = 16

Floats = npt.NDArray[np.float64]


def bootstrap_interval(
    units: Iterable[float], seed: int, level: float = LEVEL, num_draws: int = NUM_DRAWS
) -> Interval | None:
    """Return the percentile interval of the mean of independent units; None for fewer than two.

    Equal units and seeds give equal intervals.

    >>> low, high = bootstrap_interval([1.0] * 60 + [0.0] * 40, seed=0)
    >>> round(low, 2), round(high, 2)
    (0.5, 0.7)
    """
    values = np.asarray(list(units), dtype=np.float64)
    if len(values) < 2:
        return None
    means = bootstrap_means(values, np.random.default_rng(seed), num_draws)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], method="linear")
    return Interval(float(low), float(high))


def bootstrap_means(values: Floats, generator: np.random.Generator, num_draws: int = NUM_DRAWS) -> Floats:
    """Draw the means of `num_draws` resamples of the values.

    Binary items and their differences have few distinct values: the numbers of each in a resample are multinomial, the
    same distribution at a fraction of the time.
    """
    distinct, counts = np.unique(values, return_counts=True)
    n = len(values)
    if len(distinct) <= MAX_DISTINCT:
        drawn = generator.multinomial(n, counts / n, size=num_draws)
        return np.asarray(drawn @ distinct / n)
    means = np.empty(num_draws)
    num_rows = max(1, CHUNK // n)
    for start in range(0, num_draws, num_rows):
        rows = min(num_rows, num_draws - start)
        means[start : start + rows] = values[generator.integers(0, n, size=(rows, n))].mean(axis=1)
    return means
