"""The content of peak.json: the results of every round and the chosen peak.

    {"round", "checkpoint", "batch_reward", "judge_score", "best", "ties", "rule", "dropped": [{"round", "reason"}],
     "comparisons": [{"round", "difference", "stderr", "num_questions", "num_verdicts"}],
     "guards": [{"round", "guard", "loss", "low", "high", "p_value", "uncorrected_p_value", "num_items", "method"}],
     "saturation_round",
     "probe_gains": [{"round", "mean_reward", "mean_reward_stderr", "best_of_n_reward", "best_of_n_stderr", "p_value",
                      "num_prompts"}],
     "rounds": [{"round", "batch_reward", "random_control_reward",
                 "probe": {"mean_reward", "mean_reward_stderr", "best_of_n_reward", "best_of_n_stderr", "num_prompts"},
                 "judge_score": {"mean", "min", "max", "num_unanswered", "num_unparsable", "num_judgments"},
                 "benchmarks": {task: {"value", "stderr", "n", "metric"}}}]}

`batch_reward` and `judge_score` next to `round` and `checkpoint` belong to the peak. `best` is the round with the
highest judged score, `ties` the rounds that cannot be told apart from it, null if that could not be tested.
`comparisons` are the best minus every other kept round; `guards` are all tests against round 0, of kept and dropped
rounds. `probe_gains` are every round minus the round before on the probe, and `saturation_round` is the first round
after which the mean reward does not gain significantly (eval/probe.py); null if every round gains or without a probe.
Other values can be null: round 0 has no batch reward, no round has a judged score if no questions are configured, and
none has a `probe` without one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from eval.judging.judged_scores import JudgedScore
from eval.peak import Comparison, GuardTest, Peak
from eval.probe import ProbeGain, ProbeScore, probe_gains, probe_score, saturation_round
from eval.ranking import spearman
from winnow.records import EvalResult, ProbeReward, Row


class ScoreRange(Row):
    """A judged score over runs, on the scale 1 to 10; unreadable verdicts and unanswered turns are only counted."""

    mean: float
    min: float
    max: float
    num_unanswered: int = 0
    num_unparsable: int = 0
    num_judgments: int = 0


class BenchmarkScore(Row):
    """One task's value with its standard error over n items."""

    value: float
    stderr: float | None
    n: int
    metric: str


class RoundReport(Row):
    """The results of one round.

    Batch reward and the reward of the random control are means over the round's own prompts; only `probe` compares with
    other rounds.
    """

    round: int
    batch_reward: float | None
    random_control_reward: float | None
    probe: ProbeScore | None
    judge_score: ScoreRange | None
    benchmarks: dict[str, BenchmarkScore]

    @property
    def gap(self) -> float | None:
        """Batch reward minus the reward of the random control."""
        if self.batch_reward is None or self.random_control_reward is None:
            return None
        return self.batch_reward - self.random_control_reward


class DroppedRound(Row):
    """A round that a guard ruled out, with the reason."""

    round: int
    reason: str


class PeakReport(Row):
    """The content of peak.json."""

    round: int
    checkpoint: str
    batch_reward: float | None
    judge_score: ScoreRange | None
    best: int | None
    ties: tuple[int, ...] | None
    rule: str
    rounds: tuple[RoundReport, ...]
    dropped: tuple[DroppedRound, ...]
    comparisons: tuple[Comparison, ...] = ()
    guards: tuple[GuardTest, ...] = ()
    probe_gains: tuple[ProbeGain, ...] = ()
    saturation_round: int | None = None

    @property
    def has_probe(self) -> bool:
        """True if a round has rewards on the probe."""
        return any(report.probe is not None for report in self.rounds)

    @property
    def rank_agreement(self) -> float | None:
        """Spearman's correlation of reward and mean judged score over the rounds that have both.

        The reward is the mean on the probe, or batch reward in a run without a probe.
        """
        rewards: list[float] = []
        scores: list[float] = []
        for report in self.rounds:
            reward = report.batch_reward
            if self.has_probe:
                reward = None if report.probe is None else report.probe.mean_reward
            if reward is not None and report.judge_score is not None:
                rewards.append(reward)
                scores.append(report.judge_score.mean)
        return spearman(rewards, scores)


def round_report(
    round_number: int,
    benchmarks: Sequence[EvalResult],
    judged: JudgedScore | None,
    metrics: Mapping[str, Any],
    probe: Sequence[ProbeReward] = (),
) -> RoundReport:
    """Build the report of one round from its results, its reward metrics (empty for round 0) and its probe."""
    judge_score = None
    if judged is not None:
        judge_score = ScoreRange(
            mean=judged.mean,
            min=judged.min,
            max=judged.max,
            num_unanswered=judged.num_unanswered,
            num_unparsable=judged.num_unparsable,
            num_judgments=judged.num_judgments,
        )
    return RoundReport(
        round=round_number,
        batch_reward=metrics.get("batch_reward"),
        random_control_reward=metrics.get("random_control_reward"),
        probe=probe_score(probe),
        judge_score=judge_score,
        benchmarks={name: _score(result) for name, result in named_results(benchmarks).items()},
    )


def named_results(results: Sequence[EvalResult]) -> dict[str, EvalResult]:
    """Return the results by task name; by "task metric" for a task that is configured with several metrics."""
    tasks = [result.task for result in results]
    named: dict[str, EvalResult] = {}
    for result in results:
        has_several_metrics = tasks.count(result.task) > 1
        name = f"{result.task} {result.metric}" if has_several_metrics else result.task
        named[name] = result
    return named


def peak_report(
    peak: Peak, rounds: Sequence[RoundReport], checkpoint: str, probes: Sequence[Sequence[ProbeReward]] = ()
) -> PeakReport:
    """Build the content of peak.json; `rounds` must hold the peak's round, `probes` are those of rounds 0, 1, ..."""
    gains = probe_gains(probes)
    chosen = next(report for report in rounds if report.round == peak.round)
    return PeakReport(
        round=peak.round,
        checkpoint=checkpoint,
        batch_reward=chosen.batch_reward,
        judge_score=chosen.judge_score,
        best=peak.best,
        ties=None if peak.ties is None else tuple(peak.ties),
        rule=peak.rule,
        rounds=tuple(rounds),
        dropped=tuple(DroppedRound(round=round_number, reason=reason) for round_number, reason in peak.dropped.items()),
        comparisons=tuple(peak.comparisons),
        guards=tuple(peak.guards),
        probe_gains=tuple(gains),
        saturation_round=saturation_round(gains),
    )


def _score(result: EvalResult) -> BenchmarkScore:
    return BenchmarkScore(value=result.value, stderr=result.stderr, n=result.n, metric=result.metric)
