"""The peak rule: it chooses the round whose checkpoint is kept. Pure.

1. Guards. Every round is compared with round 0, item by item. A round is dropped when its loss on a guard benchmark is
   significantly greater than `guard_tolerance`: one-sided, null hypothesis loss <= tolerance, Holm-corrected over all
   guards and rounds, at `guard_alpha`. A loss that is merely unproven keeps the round; round 0 is never dropped. The
   loss of a metric that is better when lower is its rise.
2. Judged score. Of the kept rounds the one with the highest judged score is the best.
3. Ties. The peak is the earliest kept round that is at most TIE_STDERRS paired standard errors below the best, since
   training beyond it bought nothing that the judge sees. Reward has no say: among equals the highest reward is the most
   over-optimised round.
4. Tie set. The kept rounds at most APART_STDERRS paired standard errors below the best cannot be told apart from it.

    s(round)    mean over questions of the mean of a question's verdicts
    d, e        mean and standard error over questions of best - round, on the (question, turn) keys that both have
    peak        the earliest round with d <= 0.5 e        tie set    d <= 1.96 e

The best is found on the (question, turn) keys that all kept judged rounds have, so that an unreadable verdict moves no
round. Without verdicts by question the highest judged score wins, the earliest of equals, and no tie can be tested. A
round without a judged score ranks below every judged round. If no round is judged, the last kept round is the peak.

The tests are those of eval/statistics; `python -m benchmarks.peak_rule` compares this rule with others.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from eval.statistics.estimates import clustered_estimate
from eval.statistics.holm import holm
from eval.statistics.loss_test import LossTest, loss_test
from eval.statistics.mcnemar import EQUAL
from eval.statistics.pairing import paired_differences, shared_differences
from winnow.errors import WinnowError
from winnow.records import Row

TIE_STDERRS = 0.5
APART_STDERRS = 1.96

# (question, turn) -> verdict, the mean over runs.
Verdicts = Mapping[tuple[int | str, int], float]


@dataclass(frozen=True)
class Guard:
    """One guard benchmark of a round: item id -> value, and the direction of the metric."""

    values: Mapping[str, float]
    higher_is_better: bool = True


@dataclass(frozen=True)
class Candidate:
    """A round as the rule sees it; `verdicts` are empty where no judgments by question are at hand."""

    round: int
    judge_score: float | None
    verdicts: Verdicts = field(default_factory=dict)
    guards: Mapping[str, Guard] = field(default_factory=dict)


@dataclass(frozen=True)
class Rule:
    """The rule's two settings; the module's docstring explains them."""

    guard_alpha: float = 0.05
    guard_tolerance: float = 0.0

    @property
    def text(self) -> str:
        """The rule in one line, for peak.json."""
        return (
            f"drop rounds whose loss against round 0 on a guard benchmark is significantly greater than "
            f"{100 * self.guard_tolerance:g} points (one-sided paired test, Holm-corrected, alpha "
            f"{self.guard_alpha:g}); then the earliest round within {TIE_STDERRS:g} paired standard errors of the "
            "highest judged score"
        )


class GuardTest(Row):
    """A round against round 0 on one guard: loss and 95 % interval as fractions; `p_value` is Holm-corrected."""

    round: int
    guard: str
    loss: float
    low: float | None
    high: float | None
    p_value: float
    uncorrected_p_value: float
    num_items: int
    method: str


class Comparison(Row):
    """The best round minus a kept round, on the keys that both have; `stderr` is over questions, None for one."""

    round: int
    difference: float
    stderr: float | None
    num_questions: int
    num_verdicts: int

    def is_within(self, num_stderrs: float) -> bool:
        """Tell whether the round is at most so many paired standard errors below the best."""
        return self.difference <= max(num_stderrs * (self.stderr or 0.0), EQUAL)


@dataclass(frozen=True)
class Peak:
    """The chosen round, and why.

    `best` has the highest judged score; None if no round is judged. `ties` is the tie set with the best, ascending;
    None if it could not be tested. `comparisons` are of the best with every kept judged round but itself.
    """

    round: int
    best: int | None
    ties: list[int] | None
    dropped: dict[int, str]
    rule: str
    guards: list[GuardTest] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)


def choose_peak(candidates: Sequence[Candidate], rule: Rule) -> Peak:
    """Apply the rule; the order of the candidates has no effect.

    Raises WinnowError without round 0, for a judged score that is not finite, for a guard without values by item, and
    if rounds were evaluated on different items or have no verdict in common.

    >>> verdicts = {(81, 1): 7.0, (82, 1): 8.0, (83, 1): 6.0}
    >>> later = {(81, 1): 7.5, (82, 1): 7.5, (83, 1): 6.2}
    >>> peak = choose_peak([Candidate(0, 7.0, verdicts), Candidate(1, 7.07, later)], Rule())
    >>> peak.best, peak.round, peak.ties
    (1, 0, [0, 1])
    """
    ordered = sorted(candidates, key=lambda candidate: candidate.round)
    tests = guard_tests(ordered, rule)
    dropped = dropped_rounds(tests, rule)
    kept = [candidate for candidate in ordered if candidate.round not in dropped]
    judged = [candidate for candidate in kept if candidate.judge_score is not None]
    for candidate in judged:
        if not math.isfinite(_score(candidate)):
            raise WinnowError(
                f"round {candidate.round} has the judged score {candidate.judge_score}; evaluate it again"
            )
    if not judged:
        return Peak(kept[-1].round, None, None, dropped, rule.text, tests)
    if not all(candidate.verdicts for candidate in judged):
        best = max(judged, key=lambda candidate: (_score(candidate), -candidate.round))
        return Peak(best.round, best.round, None, dropped, rule.text, tests)
    best = _best(judged)
    comparisons = [_comparison(best, candidate) for candidate in judged if candidate.round != best.round]
    level = [comparison.round for comparison in comparisons if comparison.is_within(TIE_STDERRS)]
    tied = [comparison.round for comparison in comparisons if comparison.is_within(APART_STDERRS)]
    ties = sorted([best.round, *tied])
    is_tested = all(comparison.stderr is not None for comparison in comparisons)
    return Peak(
        round=min([best.round, *level]),
        best=best.round,
        ties=ties if is_tested else None,
        dropped=dropped,
        rule=rule.text,
        guards=tests,
        comparisons=comparisons,
    )


def guard_tests(candidates: Sequence[Candidate], rule: Rule) -> list[GuardTest]:
    """Compare every later round with round 0 on every guard of round 0; correct all p-values together."""
    ordered = sorted(candidates, key=lambda candidate: candidate.round)
    if not ordered or ordered[0].round != 0:
        raise WinnowError("the peak rule compares every round with round 0, which has no results; evaluate it")
    start = ordered[0]
    results: list[tuple[int, str, LossTest]] = []
    for candidate in ordered[1:]:
        for guard in sorted(start.guards):
            differences = _guard_differences(start, candidate, guard)
            results.append((candidate.round, guard, loss_test(differences, rule.guard_tolerance)))
    corrected = holm([result.p_value for _, _, result in results])
    tests: list[GuardTest] = []
    for (round_number, guard, result), p_value in zip(results, corrected, strict=True):
        low, high = result.interval or (None, None)
        tests.append(
            GuardTest(
                round=round_number,
                guard=guard,
                loss=result.loss,
                low=low,
                high=high,
                p_value=p_value,
                uncorrected_p_value=result.p_value,
                num_items=result.num_items,
                method=result.method,
            )
        )
    return tests


def dropped_rounds(tests: Sequence[GuardTest], rule: Rule) -> dict[int, str]:
    """Return the reason for each dropped round; the reason names each guard that the round fails."""
    reasons: dict[int, list[str]] = {}
    for test in tests:
        if test.p_value < rule.guard_alpha:
            interval = ""
            if test.low is not None and test.high is not None:
                interval = f" (95 % interval {100 * test.low:.1f} to {100 * test.high:.1f})"
            reason = (
                f"{test.guard} lost {100 * test.loss:.1f} points{interval} against round 0, significantly more than "
                f"{100 * rule.guard_tolerance:g} (p = {test.p_value:.2g})"
            )
            reasons.setdefault(test.round, []).append(reason)
    return {round_number: "; ".join(texts) for round_number, texts in sorted(reasons.items())}


def _guard_differences(start: Candidate, later: Candidate, name: str) -> list[float]:
    """Return later minus start for each item of one guard, turned so that higher is better."""
    guard = start.guards[name]
    if not guard.values:
        raise WinnowError(
            f"the guard {name} has no value for each item, so a loss cannot be tested; set is_guard: false for this "
            "benchmark, or choose a metric that is a mean over items"
        )
    values = later.guards[name].values if name in later.guards else {}
    names = (f"{name} of round {start.round}", f"{name} of round {later.round}")
    differences = list(paired_differences(guard.values, values, names).values())
    return differences if guard.higher_is_better else [-difference for difference in differences]


def _best(judged: Sequence[Candidate]) -> Candidate:
    """Return the round with the highest score on the keys that all have; the earliest of equals."""
    shared = set(judged[0].verdicts).intersection(*(candidate.verdicts for candidate in judged[1:]))
    if not shared:
        rounds = ", ".join(str(candidate.round) for candidate in judged)
        raise WinnowError(
            f"rounds {rounds} have no question and turn in common that the judge scored; evaluate them on the same "
            "question set"
        )
    best = judged[0]
    highest = -math.inf
    for candidate in judged:
        verdicts = {key: candidate.verdicts[key] for key in sorted(shared, key=repr)}
        score = clustered_estimate(verdicts, lambda key: key[0]).mean
        if score > highest + EQUAL:
            best = candidate
            highest = score
    return best


def _comparison(best: Candidate, candidate: Candidate) -> Comparison:
    names = (f"round {candidate.round}", f"round {best.round}")
    differences = shared_differences(candidate.verdicts, best.verdicts, names)
    result = clustered_estimate(differences, lambda key: key[0])
    return Comparison(
        round=candidate.round,
        difference=result.mean,
        stderr=result.stderr,
        num_questions=result.n,
        num_verdicts=len(differences),
    )


def _score(candidate: Candidate) -> float:
    assert candidate.judge_score is not None
    return candidate.judge_score
