"""The peak rule: which round's checkpoint is the one to keep. Pure.

1. Guards. Round 0 is the measure. A round is dropped when it is worse than round 0 on a guard benchmark by more than
   `guard_tolerance` and significantly so: a one-sided exact McNemar test on the items that the two rounds answer
   differently, corrected by Holm over all guards and rounds, at `guard_alpha`. Round 0 is never dropped.
2. Judged score. Of the rounds left, the highest mean judged score wins; the rounds at most `judge_tolerance` below it
   are the tie set, which are called indistinguishable.
3. Ties go to the highest batch reward (round 0, which has none, loses them), and then to the earlier round.

A round without a judged score ranks below every round with one; where no round has one, all are tied.

    b, c = items that got worse, items that got better;  p = P(X >= b), X ~ Binomial(b + c, 1/2)

The exact test on discordant pairs: McNemar 1947, Psychometrika 12. Items scored between 0 and 1 make it the sign test.
Holm: 1979, Scandinavian Journal of Statistics 6. Why paired: Miller, arXiv 2411.00640.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from winnow.errors import WinnowError

ItemValues = Mapping[str, float]


@dataclass(frozen=True)
class Candidate:
    """What the rule looks at: a round's mean judged score, its batch reward, and guard name -> item id -> value."""

    round: int
    judge_score: float | None
    batch_reward: float | None = None
    guards: Mapping[str, ItemValues] = field(default_factory=dict)


@dataclass(frozen=True)
class Rule:
    """The rule's three numbers; see the module's text."""

    guard_alpha: float = 0.05
    guard_tolerance: float = 0.0
    judge_tolerance: float = 0.0

    @property
    def text(self) -> str:
        """The rule in one line, for the record."""
        return (
            f"drop rounds worse than round 0 on a guard benchmark (one-sided exact McNemar test, Holm-corrected, "
            f"alpha {self.guard_alpha:g}, tolerance {self.guard_tolerance:g}); then the highest judged score; ties "
            f"(within {self.judge_tolerance:g}) by batch reward, then the earlier round"
        )


@dataclass(frozen=True)
class Peak:
    """The chosen round, the rounds tied with it (itself included, ascending), and why others were dropped."""

    round: int
    ties: list[int]
    dropped: dict[int, str]
    rule: str


@dataclass(frozen=True)
class GuardTest:
    """One round on one guard against round 0: `loss` as a fraction, `p_value` as corrected by Holm."""

    round: int
    guard: str
    loss: float
    p_value: float


def choose_peak(candidates: Sequence[Candidate], rule: Rule) -> Peak:
    """Apply the rule; the order of the candidates does not matter. Raises WinnowError without round 0."""
    tests = guard_tests(candidates)
    dropped = dropped_rounds(tests, rule)
    kept = [candidate for candidate in candidates if candidate.round not in dropped]
    tied = _tie_set(kept, rule.judge_tolerance)
    winner = max(tied, key=lambda one: (_or_lowest(one.batch_reward), -one.round))
    return Peak(winner.round, sorted(one.round for one in tied), dropped, rule.text)


def guard_tests(candidates: Sequence[Candidate]) -> list[GuardTest]:
    """Every later round on every guard of round 0, corrected together."""
    ordered = sorted(candidates, key=lambda one: one.round)
    if not ordered or ordered[0].round != 0:
        raise WinnowError("the peak rule needs round 0, which the other rounds are measured against; evaluate it")
    start, later = ordered[0], ordered[1:]
    pairs = [(one, guard, _differences(start, one, guard)) for one in later for guard in sorted(start.guards)]
    corrected = holm([mcnemar_p_value(differences) for _, _, differences in pairs])
    return [
        GuardTest(one.round, guard, -math.fsum(differences) / max(len(differences), 1), p_value)
        for (one, guard, differences), p_value in zip(pairs, corrected, strict=True)
    ]


def dropped_rounds(tests: Sequence[GuardTest], rule: Rule) -> dict[int, str]:
    """Round -> why it was dropped, naming each guard that it fails."""
    reasons: dict[int, list[str]] = {}
    for test in tests:
        if test.p_value < rule.guard_alpha and test.loss > rule.guard_tolerance:
            reason = f"{test.guard} is {100 * test.loss:.1f} points below round 0 (p = {test.p_value:.2g})"
            reasons.setdefault(test.round, []).append(reason)
    return {number: "; ".join(texts) for number, texts in sorted(reasons.items())}


def mcnemar_p_value(differences: Sequence[float]) -> float:
    """One-sided exact p-value that items got worse; `differences` are later minus earlier values, item by item.

    >>> mcnemar_p_value([-1, -1, -1, -1, -1, 0, 0])
    0.03125
    >>> mcnemar_p_value([-1, 1, 0])
    0.75
    """
    worse = sum(difference < 0 for difference in differences)
    changed = worse + sum(difference > 0 for difference in differences)
    ways, tail = 1, 0
    for num_worse in range(changed, worse - 1, -1):
        tail += ways
        ways = ways * num_worse // (changed - num_worse + 1)
    return tail / (1 << changed)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction, in the order given.

    >>> holm([0.25, 0.125, 0.5])
    [0.5, 0.375, 0.5]
    """
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected


def _differences(start: Candidate, later: Candidate, guard: str) -> list[float]:
    """Later minus start, item by item, for one guard."""
    before, after = start.guards[guard], later.guards.get(guard, {})
    if before.keys() != after.keys():
        raise WinnowError(
            f"round {later.round} and round 0 were evaluated on different items or prompts of {guard}, so they cannot "
            "be compared; evaluate both again with the same task files"
        )
    return [after[item] - before[item] for item in sorted(before)]


def _tie_set(kept: Sequence[Candidate], tolerance: float) -> list[Candidate]:
    best = max(_or_lowest(one.judge_score) for one in kept)
    return [one for one in kept if _or_lowest(one.judge_score) >= best - tolerance]


def _or_lowest(value: float | None) -> float:
    return -math.inf if value is None else value
