"""Holm's correction: the p-values of a family of tests, such as all checkpoints x tasks, corrected together.

    sorted p(1) <= ... <= p(m):  corrected p(k) = max over j <= k of min(1, (m - j + 1) p(j))

The chance of even one false rejection in the family is at most alpha, however the tests depend on each other (Holm
1979, Scandinavian Journal of Statistics 6).
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)


def holm(p_values: Sequence[float]) -> list[float]:
    """Apply Holm's step-down correction; the result has the order of `p_values`.

    >>> holm([0.25, 0.125, 0.5])
    [0.5, 0.375, 0.5]
    """
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected


def holm_family(p_values: Mapping[Key, float]) -> dict[Key, float]:
    """Correct a family of named p-values, such as (checkpoint, task) -> p.

    >>> holm_family({("round 1", "mmlu"): 0.01, ("round 2", "mmlu"): 0.04})
    {('round 1', 'mmlu'): 0.02, ('round 2', 'mmlu'): 0.04}
    """
    return dict(zip(p_values, holm(list(p_values.values())), strict=True))
