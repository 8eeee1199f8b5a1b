"""The noise of a judged mean, taken apart: of the judge, and of the answers that a run sampled. Pure.

    m[r][j]      mean of run r in judging j;  R runs, J judgings of the same answers
    judge sd     sqrt(mean over r of var over j of m[r][j])                             noise of one judging
    answer sd    sqrt(max(0, var over r of (mean over j of m[r][j]) - judge sd^2 / J))  noise of one run's answers

Variances have n - 1 in the denominator. This is the analysis of variance of a one-way random effects model.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance


@dataclass(frozen=True)
class Noise:
    """The two standard deviations of a mean; a value is None if there was one judging, or one run."""

    judge_sd: float | None
    answer_sd: float | None
    num_runs: int
    num_judgings: int


def noise(means: Sequence[Sequence[float]]) -> Noise:
    """Take the means of each run apart, one for each judging; every run has equally many.

    >>> noise([[6.0, 7.0], [8.0, 9.0]])
    Noise(judge_sd=0.7071067811865476, answer_sd=1.3228756555322954, num_runs=2, num_judgings=2)
    """
    num_judgings = len(means[0])
    judge_variance: float | None = None
    if num_judgings > 1:
        judge_variance = fmean(variance(run_means) for run_means in means)
    answer_sd: float | None = None
    if len(means) > 1 and judge_variance is not None:
        total = variance([fmean(run_means) for run_means in means])
        answer_sd = math.sqrt(max(0.0, total - judge_variance / num_judgings))
    judge_sd = math.sqrt(judge_variance) if judge_variance is not None else None
    return Noise(judge_sd, answer_sd, len(means), num_judgings)


def noise_lines(measured: Noise) -> list[str]:
    """Return a line for each of the two that could be measured."""
    lines: list[str] = []
    if measured.judge_sd is not None:
        lines.append(
            f"noise of the judge: sd {measured.judge_sd:.3f} of a mean ({measured.num_judgings} judgings of the same "
            "answers)"
        )
    if measured.answer_sd is not None:
        lines.append(
            f"noise of the answers: sd {measured.answer_sd:.3f} of a run's mean ({measured.num_runs} runs), without "
            "that of the judge"
        )
    return lines
