"""Two results -> their differences with intervals and p-values. Pure; the statistics are those of eval/statistics.

| values | interval | p-value, two-sided |
|---|---|---|
| items of 0 and 1 | Tango's score interval | exact McNemar |
| items of 0 and 1 with subjects | normal, standard error stratified by subject | exact McNemar |
| items with other values | bootstrap over items | Student's t over items |
| turns of questions | bootstrap over questions | Student's t over questions |
| none (unpaired) | normal, both standard errors | normal |

A difference is the later result minus the baseline. The smallest visible difference is that of a test at `alpha` with
80 % power on these items; None where the data do not give it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eval.compare.results import JudgedResult, TaskResult, subject_of
from eval.statistics.bootstrap import bootstrap_interval
from eval.statistics.distributions import normal_quantile, normal_tail, student_tail
from eval.statistics.estimates import StratifiedEstimate, cluster_means, estimate, stratified_estimate
from eval.statistics.intervals import LEVEL, Interval
from eval.statistics.length_control import LengthControlled, length_controlled
from eval.statistics.mcnemar import Outcomes, outcomes
from eval.statistics.paired_scores import score_interval
from eval.statistics.pairing import shared_differences
from eval.statistics.power import smallest_visible_difference, smallest_visible_shift

SEED = 0
ROUNDING = 1e-9


@dataclass(frozen=True)
class Difference:
    """A difference of one task, or of the judged score; numbers that the data do not give are None.

    `unit` is "item" or "question" if it is paired, and "none" if it is not: then `outcomes` is None.
    """

    baseline: float
    later: float
    difference: float
    stderr: float | None
    interval: Interval | None
    p_value: float | None
    unit: str
    num_units: int | None
    outcomes: Outcomes | None
    method: str
    discordance: float | None = None
    by_subject: StratifiedEstimate | None = None
    length_controlled: LengthControlled | None = None
    num_left_out: int = 0


def task_difference(before: TaskResult, after: TaskResult) -> Difference:
    """Compare one metric of one task: paired if both have values per item, which must be those of the same items."""
    if not before.items or not after.items:
        return _unpaired(before, after)
    by_item = shared_differences(before.items, after.items)
    values = list(by_item.values())
    signs = values
    if before.is_higher_better is False:
        signs = [-value for value in values]
    counts = outcomes(signs)
    if any(value not in (-1, 0, 1) for value in values):
        return _scores(before.value, after.value, values, counts, "item", "bootstrap; Student's t")
    subjects = _by_subject(by_item)
    stderr = estimate(values).stderr
    # Tango's interval is that of a loss: the baseline minus the later result.
    low, high = score_interval(sum(value < 0 for value in values), sum(value > 0 for value in values), len(values))
    interval = Interval(-high, -low)
    difference = after.value - before.value
    method = "exact McNemar; score interval"
    stratified = None
    if len(subjects) > 1:
        stratified = stratified_estimate(subjects)
        is_by_size = abs(stratified.by_size - difference) <= abs(stratified.by_subject - difference) + ROUNDING
        subject_stderr = stratified.by_size_stderr if is_by_size else stratified.by_subject_stderr
        if subject_stderr:
            stderr = subject_stderr
            interval = _normal_interval(difference, subject_stderr)
            method = "exact McNemar; interval stratified by subject"
    return Difference(
        before.value,
        after.value,
        difference,
        stderr,
        interval,
        counts.p_value,
        "item",
        len(values),
        counts,
        method,
        discordance=sum(value != 0 for value in values) / len(values),
        by_subject=stratified,
    )


def judged_difference(before: JudgedResult, after: JudgedResult) -> Difference | None:
    """Compare the judged scores on the turns that both have; None if they share none.

    Both scores are means over questions of these turns.
    """
    by_turn = shared_differences(before.scores, after.scores)
    if not by_turn:
        return None
    differences = cluster_means(by_turn, lambda turn: turn[0])
    means = [
        estimate(cluster_means({turn: scores[turn] for turn in by_turn}, lambda turn: turn[0]).values()).mean
        for scores in (before.scores, after.scores)
    ]
    values = list(differences.values())
    raw = _scores(means[0], means[1], values, outcomes(values), "question", "bootstrap; Student's t")
    controlled = None
    if before.lengths.keys() >= differences.keys() and after.lengths.keys() >= differences.keys():
        lengths = {question: after.lengths[question] - before.lengths[question] for question in differences}
        controlled = length_controlled(differences, lengths)
    num_turns = len(before.prompts.keys() | after.prompts.keys())
    return Difference(**{**vars(raw), "length_controlled": controlled, "num_left_out": num_turns - len(by_turn)})


def smallest_visible(difference: Difference, alpha: float) -> float | None:
    """Return the smallest difference that a test at `alpha` sees with 80 % power on these items; None if unknown."""
    if difference.discordance is not None and difference.by_subject is None:
        if difference.discordance == 0 or difference.num_units is None:
            return None
        return smallest_visible_difference(difference.num_units, difference.discordance, alpha)
    if not difference.stderr:
        return None
    return smallest_visible_shift(difference.stderr, alpha)


def _scores(
    before: float, after: float, values: Sequence[float], counts: Outcomes, unit: str, method: str
) -> Difference:
    """Compare values that are not binary."""
    mean = estimate(values)
    return Difference(
        before,
        after,
        after - before,
        mean.stderr,
        bootstrap_interval(values, SEED),
        _student_p_value(values),
        unit,
        mean.n,
        counts,
        method,
    )


def _student_p_value(values: Sequence[float]) -> float | None:
    """Return the two-sided p-value; if all values are equal, each is a coin that fell on one side."""
    mean = estimate(values)
    if mean.stderr is None:
        return None
    if mean.stderr < ROUNDING:
        return outcomes(values).p_value
    return min(1.0, 2 * student_tail(abs(mean.mean / mean.stderr), mean.n - 1))


def _unpaired(before: TaskResult, after: TaskResult) -> Difference:
    """Compare two published values: their standard errors add up, as if the items were independent."""
    difference = after.value - before.value
    stderr = None
    interval = None
    p_value = None
    if before.stderr is not None and after.stderr is not None:
        stderr = math.hypot(before.stderr, after.stderr)
    if stderr:
        interval = _normal_interval(difference, stderr)
        p_value = 2 * normal_tail(abs(difference) / stderr)
    return Difference(
        before.value, after.value, difference, stderr, interval, p_value, "none", after.num_items, None, "unpaired"
    )


def _normal_interval(mean: float, stderr: float) -> Interval:
    margin = normal_quantile((1 + LEVEL) / 2) * stderr
    return Interval(mean - margin, mean + margin)


def _by_subject(by_item: Mapping[str, float]) -> dict[str, list[float]]:
    subjects: dict[str, list[float]] = {}
    for item, value in by_item.items():
        subjects.setdefault(subject_of(item), []).append(value)
    return subjects
