"""The peak rule: it chooses the round whose checkpoint is kept. Pure.

1. Guards. Every round is compared with round 0. A round is dropped when it is worse than round 0 on a guard benchmark
   by more than `guard_tolerance`, and significantly worse: a one-sided exact McNemar test on the items that the two
   rounds answer differently, Holm-corrected over all guards and rounds, at `guard_alpha`. Round 0 is never dropped.
2. Judged score. The highest mean judged score of the kept rounds wins. The rounds at most `judge_tolerance` below it
   form the tie set; they are called indistinguishable.
3. Ties go to the highest batch reward, then to the earlier round. Round 0 has no batch reward and loses every tie.

A round without a judged score ranks below every round with a judged score. If no round has one, all rounds are tied.

The tests are those of eval/statistics.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from eval.statistics.holm import holm
from eval.statistics.mcnemar import mcnemar_p_value
from winnow.errors import WinnowError

ItemValues = Mapping[str, float]


@dataclass(frozen=True)
class Candidate:
    """A round as the rule sees it: mean judged score, batch reward, and guard name -> item id -> value."""

    round: int
    judge_score: float | None
    batch_reward: float | None = None
    guards: Mapping[str, ItemValues] = field(default_factory=dict)


@dataclass(frozen=True)
class Rule:
    """The rule's three numbers; the module's docstring explains them."""

    guard_alpha: float = 0.05
    guard_tolerance: float = 0.0
    judge_tolerance: float = 0.0

    @property
    def text(self) -> str:
        """The rule in one line, for peak.json."""
        return (
            f"drop rounds worse than round 0 on a guard benchmark (one-sided exact McNemar test, Holm-corrected, "
            f"alpha {self.guard_alpha:g}, tolerance {self.guard_tolerance:g}); then the highest judged score; ties "
            f"(within {self.judge_tolerance:g}) by batch reward, then the earlier round"
        )


@dataclass(frozen=True)
class Peak:
    """The chosen round, the tie set (ascending, with the chosen round), and dropped round -> reason."""

    round: int
    ties: list[int]
    dropped: dict[int, str]
    rule: str


@dataclass(frozen=True)
class GuardTest:
    """A comparison of one round with round 0 on one guard: `loss` is a fraction, `p_value` is Holm-corrected."""

    round: int
    guard: str
    loss: float
    p_value: float


def choose_peak(candidates: Sequence[Candidate], rule: Rule) -> Peak:
    """Apply the rule; the order of the candidates has no effect.

    Raises WinnowError without round 0, or if rounds were evaluated on different items of a guard.
    """
    tests = guard_tests(candidates)
    dropped = dropped_rounds(tests, rule)
    kept = [candidate for candidate in candidates if candidate.round not in dropped]
    tied = _tie_set(kept, rule.judge_tolerance)
    winner = max(tied, key=lambda candidate: (_or_lowest(candidate.batch_reward), -candidate.round))
    return Peak(winner.round, sorted(candidate.round for candidate in tied), dropped, rule.text)


def guard_tests(candidates: Sequence[Candidate]) -> list[GuardTest]:
    """Compare every later round with round 0 on every guard of round 0; correct all p-values together."""
    ordered = sorted(candidates, key=lambda candidate: candidate.round)
    if not ordered or ordered[0].round != 0:
        raise WinnowError("the peak rule compares every round with round 0, which has no results; evaluate it")
    start = ordered[0]
    comparisons: list[tuple[int, str, list[float]]] = []
    for candidate in ordered[1:]:
        for guard in sorted(start.guards):
            comparisons.append((candidate.round, guard, _differences(start, candidate, guard)))
    p_values = holm([mcnemar_p_value(differences) for _, _, differences in comparisons])
    tests = []
    for (round_number, guard, differences), p_value in zip(comparisons, p_values, strict=True):
        loss = -math.fsum(differences) / max(len(differences), 1)
        tests.append(GuardTest(round_number, guard, loss, p_value))
    return tests


def dropped_rounds(tests: Sequence[GuardTest], rule: Rule) -> dict[int, str]:
    """Return the reason for each dropped round; the reason names each guard that the round fails."""
    reasons: dict[int, list[str]] = {}
    for test in tests:
        if test.p_value < rule.guard_alpha and test.loss > rule.guard_tolerance:
            reason = f"{test.guard} is {100 * test.loss:.1f} points below round 0 (p = {test.p_value:.2g})"
            reasons.setdefault(test.round, []).append(reason)
    return {round_number: "; ".join(texts) for round_number, texts in sorted(reasons.items())}


def _differences(start: Candidate, later: Candidate, guard: str) -> list[float]:
    """Return later minus start for each item of one guard."""
    before = start.guards[guard]
    after = later.guards.get(guard, {})
    if before.keys() != after.keys():
        raise WinnowError(
            f"round {later.round} and round 0 were evaluated on different items or prompts of {guard}, so they cannot "
            "be compared; evaluate both again with the same task files"
        )
    return [after[item] - before[item] for item in sorted(before)]


def _tie_set(kept: Sequence[Candidate], tolerance: float) -> list[Candidate]:
    best = max(_or_lowest(candidate.judge_score) for candidate in kept)
    return [candidate for candidate in kept if _or_lowest(candidate.judge_score) >= best - tolerance]


def _or_lowest(value: float | None) -> float:
    if value is None:
        return -math.inf
    return value
