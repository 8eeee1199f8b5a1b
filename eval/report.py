"""peak.json: every round's results side by side, and the chosen peak.

    {"round", "checkpoint", "batch_reward", "judge_score", "ties", "rule", "dropped": [{"round", "reason"}],
     "rounds": [{"round", "batch_reward", "random_control_reward", "judge_score": {"mean", "min", "max"},
                 "benchmarks": {task: {"value", "stderr", "n", "metric"}}}]}

`batch_reward` and `judge_score` beside `round` and `checkpoint` are the peak's. null: round 0 has no rewards, and no
round has a judged score where no questions are configured.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from eval.judging.judged_scores import JudgedScore
from eval.peak import Peak
from eval.ranking import spearman
from winnow.records import EvalResult, Row


class ScoreRange(Row):
    """A judged score over runs, on the scale 1 to 10."""

    mean: float
    min: float
    max: float


class BenchmarkScore(Row):
    """One task's value with its standard error over n items."""

    value: float
    stderr: float | None
    n: int
    metric: str


class RoundReport(Row):
    """One round; rewards are means over its selected completions and over a random control of equal size."""

    round: int
    batch_reward: float | None
    random_control_reward: float | None
    judge_score: ScoreRange | None
    benchmarks: dict[str, BenchmarkScore]

    @property
    def gap(self) -> float | None:
        """Batch reward over the random control's."""
        if self.batch_reward is None or self.random_control_reward is None:
            return None
        return self.batch_reward - self.random_control_reward


class Dropped(Row):
    """A round that a guard ruled out, and why."""

    round: int
    reason: str


class PeakReport(Row):
    """The content of peak.json."""

    round: int
    checkpoint: str
    batch_reward: float | None
    judge_score: ScoreRange | None
    ties: tuple[int, ...]
    rule: str
    rounds: tuple[RoundReport, ...]
    dropped: tuple[Dropped, ...]

    @property
    def rank_agreement(self) -> float | None:
        """Spearman of batch reward against mean judged score over the rounds that have both."""
        pairs = [
            (one.batch_reward, one.judge_score.mean)
            for one in self.rounds
            if one.batch_reward is not None and one.judge_score is not None
        ]
        return spearman([reward for reward, _ in pairs], [score for _, score in pairs])


def round_report(
    number: int, benchmarks: Sequence[EvalResult], judge: JudgedScore | None, metrics: Mapping[str, Any]
) -> RoundReport:
    """One round from its results and its reward metrics (empty for round 0)."""
    return RoundReport(
        round=number,
        batch_reward=metrics.get("batch_reward"),
        random_control_reward=metrics.get("random_control_reward"),
        judge_score=judge and ScoreRange(mean=judge.mean, min=judge.min, max=judge.max),
        benchmarks={name: _score(result) for name, result in named_results(benchmarks).items()},
    )


def named_results(results: Sequence[EvalResult]) -> dict[str, EvalResult]:
    """Results by task; by task and metric where a task is configured with several metrics."""
    tasks = [result.task for result in results]
    return {
        result.task if tasks.count(result.task) == 1 else f"{result.task} {result.metric}": result for result in results
    }


def peak_report(peak: Peak, rounds: Sequence[RoundReport], checkpoint: str) -> PeakReport:
    """Everything of peak.json; `rounds` holds the peak's."""
    chosen = next(one for one in rounds if one.round == peak.round)
    return PeakReport(
        round=peak.round,
        checkpoint=checkpoint,
        batch_reward=chosen.batch_reward,
        judge_score=chosen.judge_score,
        ties=tuple(peak.ties),
        rule=peak.rule,
        rounds=tuple(rounds),
        dropped=tuple(Dropped(round=number, reason=reason) for number, reason in peak.dropped.items()),
    )


def _score(result: EvalResult) -> BenchmarkScore:
    return BenchmarkScore(value=result.value, stderr=result.stderr, n=result.n, metric=result.metric)
