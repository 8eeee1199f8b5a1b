"""The smallest difference that a two-sided test sees with a chosen power.

    paired binary items   d with  d sqrt(n) = z(1 - a/2) sqrt(D) + z(power) sqrt(D - d^2)  (Connor 1987, Biometrics 43)
    paired scores         d = (z(1 - a/2) + z(power)) * stderr of the paired difference

D is the discordance: the share of items that differ between the two results. A one-sided test at alpha is the
two-sided one at 2 alpha; Holm's first step of m tests is alpha / m.
"""

import math

from eval.statistics.distributions import normal_quantile


def smallest_visible_difference(n: int, discordance: float, alpha: float = 0.05, power: float = 0.8) -> float | None:
    """Return the smallest visible difference of two accuracies on the same n items, as a fraction.

    None if it would exceed the discordance: then no difference is visible. Raises ValueError for a discordance outside
    of (0, 1] or fewer than one item.

    >>> round(smallest_visible_difference(1319, 0.05), 4)  # GSM8K: 1.72 points
    0.0172
    >>> round(smallest_visible_difference(14042, 0.05), 4)  # MMLU: 0.53 points
    0.0053
    """
    if not 0 < discordance <= 1 or n < 1:
        raise ValueError(f"n is {n} and the discordance {discordance}; n must be 1 or more, the discordance in (0, 1]")
    z_alpha = normal_quantile(1 - alpha / 2)
    z_power = normal_quantile(power)
    # The root of (n + z_power^2) d^2 - 2 z_alpha sqrt(D n) d + (z_alpha^2 - z_power^2) D = 0.
    half = z_alpha * math.sqrt(discordance * n)
    scale = n + z_power**2
    root = half**2 - scale * (z_alpha**2 - z_power**2) * discordance
    difference = (half + math.copysign(math.sqrt(max(root, 0.0)), z_power)) / scale
    return difference if difference <= discordance else None


def smallest_visible_shift(stderr: float, alpha: float = 0.05, power: float = 0.8) -> float:
    """Return the smallest visible difference of two mean scores with this paired standard error.

    >>> round(smallest_visible_shift(0.1), 3)  # MT-Bench, checkpoints close to each other
    0.28
    """
    return (normal_quantile(1 - alpha / 2) + normal_quantile(power)) * stderr
