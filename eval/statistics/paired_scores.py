"""The score test and interval of the loss of paired binary items.

    b, c, n      items that got worse, items that got better, all items
    H0           loss = d, that is P(worse) = q + d, P(better) = q
    q^           maximum likelihood under H0: the upper root of 2n q^2 + B q - c d (1 - d) = 0,
                 B = (2n - b + c) d - b - c
    Z(b, c; d)   (b - c - n d) / sqrt(n (2 q^ + d (1 - d)))

Z is near standard normal if the loss is d. d = 0 gives McNemar's (b - c) / sqrt(b + c). The interval is all d with
|Z| <= z(1 - a/2). Tango 1998, Statistics in Medicine 17; Nam 1997, Biometrics 53.

`exact_p_value` does without the normal approximation, which is too small far out in the tail, where Holm's correction
needs it:

    p = g + max over q in C of P(Z(X, Y; d) >= Z(b, c; d)),  (X, Y, n - X - Y) ~ multinomial(n; q + d, q, 1 - 2q - d)

C is Clopper and Pearson's interval of q from c, which misses q with a chance of at most g = MISS. This is the exact
unconditional test ordered by the score statistic (Berger and Boos 1994, JASA 89; Berger and Sidik 2003, Statistical
Methods in Medical Research 12). The maximum is taken over NUM_GRID values of q.
"""

import functools
import math

import numpy as np
import numpy.typing as npt

from eval.statistics.distributions import normal_quantile, share_interval
from eval.statistics.intervals import LEVEL, Interval

NUM_GRID = 30
MISS = 1e-6
# A cell of the multinomial further from its mean than this many standard deviations, plus SLACK, is left out.
NUM_DEVIATIONS = 7
SLACK = 20
ROUNDING = 1e-9
TINY_SHARE = 1e-9

Floats = npt.NDArray[np.float64]
Counts = int | npt.NDArray[np.int64]


def score_statistic(num_worse: Counts, num_better: Counts, num_items: int, loss: float) -> Floats:
    """Return Z for each pair of counts; positive if more items are lost than `loss`, a fraction in (-1, 1).

    >>> round(float(score_statistic(43, 23, 200, 0.0)), 4)
    2.4618
    >>> round(float(score_statistic(43, 23, 200, 0.02)), 4)
    1.9806
    """
    if loss < 0:
        return -score_statistic(num_better, num_worse, num_items, -loss)
    worse = np.asarray(num_worse, dtype=np.float64)
    better = np.asarray(num_better, dtype=np.float64)
    linear = (2 * num_items - worse + better) * loss - worse - better
    root = np.sqrt(linear**2 + 8 * num_items * better * loss * (1 - loss))
    share_better = (root - linear) / (4 * num_items)
    spread = np.sqrt(num_items * (2 * share_better + loss * (1 - loss)))
    excess = worse - better - num_items * loss
    return np.asarray(np.divide(excess, spread, out=np.zeros_like(excess + spread), where=spread > 0))


def score_interval(num_worse: int, num_better: int, num_items: int, level: float = LEVEL) -> Interval:
    """Return Tango's interval of the loss, by bisection.

    >>> low, high = score_interval(43, 23, 200)
    >>> round(low, 4), round(high, 4)
    (0.0209, 0.1791)
    """
    z = normal_quantile((1 + level) / 2)
    loss = (num_worse - num_better) / num_items
    # Z falls as the tested loss grows.
    low = _crossing(num_worse, num_better, num_items, z, -1.0, loss)
    high = _crossing(num_worse, num_better, num_items, -z, loss, 1.0)
    return Interval(low, high)


def exact_p_value(num_worse: int, num_better: int, num_items: int, loss: float) -> float:
    """Return the one-sided exact p-value that the loss exceeds `loss`, which is in [0, 1).

    >>> round(exact_p_value(43, 23, 200, 0.02), 3)
    0.025
    """
    threshold = float(score_statistic(num_worse, num_better, num_items, loss)) - ROUNDING
    low, high = share_interval(num_better, num_items, MISS)
    # Within the open range of q; equal steps of the square root, because the chances change fastest near 0.
    low = max(low, TINY_SHARE)
    high = min(max(high, low), (1 - loss) / 2 - TINY_SHARE)
    highest = 0.0
    for root in np.linspace(math.sqrt(min(low, high)), math.sqrt(high), NUM_GRID):
        highest = max(highest, _tail(threshold, num_items, loss, float(root) ** 2))
    return min(1.0, highest + MISS)


def _tail(threshold: float, num_items: int, loss: float, share_better: float) -> float:
    """Return P(Z >= threshold) for one q."""
    worse = _window(num_items, share_better + loss)[:, None]
    better = _window(num_items, share_better)[None, :]
    equal = num_items - worse - better
    is_counted = (equal >= 0) & (score_statistic(worse, better, num_items, loss) >= threshold)
    log_factorials = _log_factorials(num_items)
    log_cells = (
        log_factorials[num_items]
        - (log_factorials[worse] - worse * math.log(share_better + loss))
        - (log_factorials[better] - better * math.log(share_better))
        - (log_factorials[np.maximum(equal, 0)] - equal * math.log(1 - loss - 2 * share_better))
    )
    return float(np.exp(log_cells[is_counted]).sum())


def _window(num_items: int, share: float) -> npt.NDArray[np.int64]:
    """Return the counts that have a chance worth adding."""
    reach = NUM_DEVIATIONS * math.sqrt(num_items * share * (1 - share)) + SLACK
    low = max(0, math.floor(num_items * share - reach))
    high = min(num_items, math.ceil(num_items * share + reach))
    return np.arange(low, high + 1)


@functools.lru_cache(maxsize=8)
def _log_factorials(n: int) -> Floats:
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])


def _crossing(num_worse: int, num_better: int, num_items: int, z: float, low: float, high: float) -> float:
    """Return the loss at which Z is `z`, between `low` and `high`; a bound at -1 or 1 is met only in the limit."""
    for _ in range(60):
        middle = (low + high) / 2
        if float(score_statistic(num_worse, num_better, num_items, middle)) > z:
            low = middle
        else:
            high = middle
    return (low + high) / 2
