"""Tails and quantiles of the normal, Student's t and binomial distributions, so that scipy is not needed.

    P(Z >= z) = erfc(z / sqrt(2)) / 2
    P(T >= t) = I(f / (f + t^2); f / 2, 1 / 2) / 2          for t >= 0 and f degrees of freedom
    P(X >= k) = I(p; k, n - k + 1)                          for X ~ Binomial(n, p) and k > 0

I is the regularized incomplete beta function, by its continued fraction (DLMF 8.17.22) with Lentz's method.
"""

import math
from collections.abc import Callable
from statistics import NormalDist

_TINY = 1e-300
_PRECISION = 1e-15
_MAX_STEPS = 10_000


def normal_tail(z: float) -> float:
    """Return P(Z >= z) of the standard normal distribution.

    >>> round(normal_tail(1.959964), 6)
    0.025
    """
    return math.erfc(z / math.sqrt(2)) / 2


def normal_quantile(probability: float) -> float:
    """Return z with P(Z <= z) = probability.

    >>> round(normal_quantile(0.975), 4)
    1.96
    """
    return NormalDist().inv_cdf(probability)


def student_tail(t: float, degrees: float) -> float:
    """Return P(T >= t) of Student's t distribution.

    >>> round(student_tail(2.0, 10), 6)
    0.036694
    """
    if t < 0:
        return 1 - student_tail(-t, degrees)
    return incomplete_beta(degrees / (degrees + t * t), degrees / 2, 0.5) / 2


def student_quantile(probability: float, degrees: float) -> float:
    """Return t with P(T <= t) = probability, by bisection.

    >>> round(student_quantile(0.975, 10), 4)
    2.2281
    """
    if probability < 0.5:
        return -student_quantile(1 - probability, degrees)
    low = 0.0
    high = 1.0
    while student_tail(high, degrees) > 1 - probability:
        low = high
        high *= 2
    while high - low > _PRECISION * max(1.0, high):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if student_tail(middle, degrees) > 1 - probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def share_interval(num_right: int, n: int, miss: float) -> tuple[float, float]:
    """Return Clopper and Pearson's interval of a share, which misses the true share with a chance of at most `miss`.

    >>> low, high = share_interval(3, 20, 0.05)
    >>> round(low, 4), round(high, 4)
    (0.0321, 0.3789)
    """
    low = 0.0
    if num_right > 0:
        low = _solve(lambda share: incomplete_beta(share, num_right, n - num_right + 1) - miss / 2)
    high = 1.0
    if num_right < n:
        high = _solve(lambda share: incomplete_beta(share, num_right + 1, n - num_right) - 1 + miss / 2)
    return low, high


def _solve(rising: Callable[[float], float]) -> float:
    """Return the zero in [0, 1] of a rising function."""
    low = 0.0
    high = 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if rising(middle) < 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def incomplete_beta(x: float, a: float, b: float) -> float:
    """Return the regularized incomplete beta function I(x; a, b).

    The continued fraction converges fast below (a + 1) / (a + b + 2); above, the mirror image is computed.

    >>> round(incomplete_beta(0.5, 2.0, 3.0), 4)
    0.6875
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - incomplete_beta(1 - x, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(log_front) * _continued_fraction(x, a, b) / a


def _continued_fraction(x: float, a: float, b: float) -> float:
    c = 1.0
    d = 1 / _away_from_zero(1 - (a + b) * x / (a + 1))
    fraction = d
    for m in range(1, _MAX_STEPS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for coefficient in (even, odd):
            d = 1 / _away_from_zero(1 + coefficient * d)
            c = _away_from_zero(1 + coefficient / c)
            fraction *= c * d
        if abs(c * d - 1) < _PRECISION:
            break
    return fraction


def _away_from_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
