"""The exact test that items changed for the worse, and wins, ties and losses.

    b, c = items that got worse, items that got better;  p = P(X >= b), X ~ Binomial(b + c, 1/2)

The exact McNemar test: McNemar 1947, Psychometrika 12. For values that are not binary it is the sign test, which asks
whether more items got worse than better, not whether the mean fell.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# Means over runs and turns of equal verdicts can differ in the last digits.
EQUAL = 1e-9


@dataclass(frozen=True)
class Outcomes:
    """The numbers of items that are better, equal and worse in the later result."""

    wins: int
    ties: int
    losses: int

    @property
    def win_rate(self) -> float | None:
        """The share of wins, with ties as halves; None without items."""
        n = self.wins + self.ties + self.losses
        return (self.wins + self.ties / 2) / n if n else None

    @property
    def p_value(self) -> float:
        """The two-sided p-value of the sign test: 2 min(P(X >= losses), P(X >= wins)), at most 1."""
        n = self.wins + self.losses
        return min(1.0, 2 * min(binomial_tail(self.losses, n), binomial_tail(self.wins, n)))


def outcomes(differences: Iterable[float]) -> Outcomes:
    """Count wins, ties and losses; `differences` are later minus earlier values, by item or by question.

    >>> outcomes([0.5, 0.0, -1.0, 2.0])
    Outcomes(wins=2, ties=1, losses=1)
    """
    values = list(differences)
    wins = sum(value > EQUAL for value in values)
    losses = sum(value < -EQUAL for value in values)
    return Outcomes(wins, len(values) - wins - losses, losses)


def mcnemar_p_value(differences: Sequence[float]) -> float:
    """Return the one-sided exact p-value that items got worse; `differences` are later minus earlier values per item.

    >>> mcnemar_p_value([-1, -1, -1, -1, -1, 0, 0])
    0.03125
    >>> mcnemar_p_value([-1, 1, 0])
    0.75
    """
    counts = outcomes(differences)
    return binomial_tail(counts.losses, counts.wins + counts.losses)


def binomial_tail(k: int, n: int) -> float:
    """Return P(X >= k), X ~ Binomial(n, 1/2), from integers: C(n, n) + C(n, n-1) + ... + C(n, k), over 2**n.

    >>> binomial_tail(5, 5)
    0.03125
    """
    num_ways = 1
    tail = 0
    for heads in range(n, k - 1, -1):
        tail += num_ways
        num_ways = num_ways * heads // (n - heads + 1)  # C(n, heads - 1) from C(n, heads)
    return tail / (1 << n)
