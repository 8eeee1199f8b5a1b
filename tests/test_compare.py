"""Comparisons of worked tiny results: the numbers, the verdicts, and every reason for a refusal."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from eval.compare.comparison import ComparedRow, as_json, compare
from eval.compare.results import JudgedResult, ResultSet, TaskResult, Turn
from eval.statistics.distributions import normal_tail
from eval.statistics.paired_scores import score_statistic
from eval.statistics.power import smallest_visible_difference
from winnow.errors import PreflightError, UsageError

KEY = ("sums", "acc,none")
CONDITIONS = {"shots": 5, "limit": None, "chat template": None, "lm-eval version": "0.4.13"}


def task(values: Sequence[float], **changes: Any) -> TaskResult:
    """Return a task with these values by item."""
    items = {f"sums/{number}/hash{number}": value for number, value in enumerate(values)}
    contents = {f"sums/{number}": f"content{number}" for number in range(len(values))}
    result = TaskResult(
        *KEY, sum(values) / len(values), 0.1, len(values), items, contents, "hash", True, dict(CONDITIONS)
    )
    return replace(result, **changes)


def result(name: str, sums: TaskResult | None = None, judged: JudgedResult | None = None) -> ResultSet:
    tasks = {}
    if sums is not None:
        tasks[sums.task, sums.metric] = sums
    return ResultSet(name, tasks, judged)


def judged(first: Sequence[float], second: Sequence[float], **changes: Any) -> JudgedResult:
    """Return a judged score of two turns a question."""
    scores: dict[Turn, float] = {}
    for turn, values in ((1, first), (2, second)):
        scores |= {(question, turn): value for question, value in enumerate(values)}
    prompts = dict.fromkeys(scores, "single-v1\nplease judge")
    mean = sum(scores.values()) / len(scores)
    return replace(JudgedResult("gpt-4", mean, 0.1, scores, prompts, 0), **changes)


def row_of(*results: ResultSet) -> ComparedRow:
    """Return the only row of the comparison of two results."""
    [compared] = compare(results).results
    [row] = compared.rows
    return row


def reasons(before: ResultSet, after: ResultSet) -> tuple[str, ...]:
    with pytest.raises(PreflightError) as caught:
        compare([before, after])
    assert caught.value.exit_code == 2
    return caught.value.faults


def test_binary_items_have_the_exact_mcnemar_test_and_the_score_interval() -> None:
    # 8 items better, 1 worse, 11 equal: p = 2 P(X >= 8), X ~ Binomial(9, 1/2) = 2 (9 + 1) / 512.
    row = row_of(result("a", task([0] * 8 + [1] * 12)), result("b", task([1] * 8 + [0] + [1] * 11)))
    difference = row.difference
    assert difference.difference == pytest.approx(0.35)
    assert difference.p_value == pytest.approx(20 / 512)
    assert row.corrected == pytest.approx(20 / 512)
    assert row.verdict == "better *"
    assert difference.outcomes is not None
    assert (difference.outcomes.wins, difference.outcomes.ties, difference.outcomes.losses) == (8, 11, 1)
    assert difference.interval is not None
    # Tango's interval: its statistic of the loss, the difference with the sign turned, is 1.96 at both ends.
    statistics = [float(score_statistic(1, 8, 20, -bound)) for bound in difference.interval]
    assert statistics == pytest.approx([-1.959964, 1.959964], abs=1e-5)
    assert row.visible is not None
    assert 0 < row.visible <= 9 / 20


def test_a_metric_that_is_better_when_lower_turns_the_verdict() -> None:
    before = task([0] * 8 + [1] * 12, is_higher_better=False)
    row = row_of(result("a", before), result("b", task([1] * 8 + [0] + [1] * 11, is_higher_better=False)))
    assert row.verdict == "worse *"
    assert row.difference.outcomes is not None
    assert (row.difference.outcomes.wins, row.difference.outcomes.losses) == (1, 8)


def test_a_metric_of_unknown_direction_is_called_higher() -> None:
    before = task([0] * 8 + [1] * 12, is_higher_better=None)
    assert row_of(result("a", before), result("b", task([1] * 20))).verdict == "higher *"


def test_holm_is_over_all_later_results() -> None:
    start = result("a", task([0] * 8 + [1] * 12))
    comparison = compare([start, result("b", task([1] * 8 + [0] + [1] * 11)), result("c", task([0] * 8 + [1] * 12))])
    assert comparison.num_tests == 2
    rows = [compared.rows[0] for compared in comparison.results]
    assert [row.corrected for row in rows] == [pytest.approx(40 / 512), 1.0]
    assert [row.verdict for row in rows] == ["not told apart", "not told apart"]


def test_the_interval_of_subjects_is_stratified() -> None:
    items = {f"mmlu_law/{n}/h": float(n % 2) for n in range(4)} | {f"mmlu_art/{n}/h": 0.0 for n in range(2)}
    later = {**items, "mmlu_law/0/h": 1.0, "mmlu_art/0/h": 1.0}
    before = TaskResult("mmlu", "acc,none", 2 / 6, 0.1, 6, items)
    after = TaskResult("mmlu", "acc,none", 4 / 6, 0.1, 6, later)
    difference = row_of(result("a", before), result("b", after)).difference
    # Differences: law 1 0 0 0 (variance 1/4), art 1 0 (variance 1/2).
    expected = math.sqrt((4 / 6) ** 2 * (1 / 4) / 4 + (2 / 6) ** 2 * (1 / 2) / 2)
    assert difference.stderr == pytest.approx(expected)
    assert difference.interval == pytest.approx((1 / 3 - 1.959964 * expected, 1 / 3 + 1.959964 * expected), abs=1e-6)
    assert difference.by_subject is not None
    assert difference.by_subject.by_size == pytest.approx(1 / 3)
    assert difference.by_subject.by_subject == pytest.approx((1 / 4 + 1 / 2) / 2)
    assert difference.p_value == pytest.approx(0.5)


def test_an_unweighted_group_has_the_standard_error_of_its_unweighted_mean() -> None:
    items = {f"mmlu_law/{n}/h": float(n % 2) for n in range(4)} | {f"mmlu_art/{n}/h": 0.0 for n in range(2)}
    later = {**items, "mmlu_law/0/h": 1.0, "mmlu_art/0/h": 1.0}
    # Means of the subjects: 1/2 and 0, then 3/4 and 1/2.
    before = TaskResult("mmlu", "acc,none", 1 / 4, 0.1, 6, items)
    after = TaskResult("mmlu", "acc,none", 5 / 8, 0.1, 6, later)
    difference = row_of(result("a", before), result("b", after)).difference
    assert difference.difference == pytest.approx(3 / 8)
    assert difference.stderr == pytest.approx(math.sqrt((1 / 4) / 4 + (1 / 2) / 2) / 2)


def test_the_smallest_visible_difference_is_that_at_holms_first_step() -> None:
    start = result("a", task([0] * 8 + [1] * 12))
    later = result("b", task([1] * 8 + [0] + [1] * 11))
    [first, _] = compare([start, later, later]).results
    assert first.rows[0].visible == smallest_visible_difference(20, 9 / 20, alpha=0.025)
    stderr = math.sqrt(2 / 3) / 2
    scored = row_of(
        result("a", judged=judged([5] * 4, [5] * 4)), result("b", judged=judged([6, 7, 5, 7], [6, 5, 5, 7]))
    )
    assert scored.visible == pytest.approx((1.959964 + 0.841621) * stderr, abs=1e-5)


def test_values_that_are_not_binary_have_a_t_test() -> None:
    row = row_of(result("a", task([0.0, 0.5, 0.25, 0.5])), result("b", task([0.5, 0.75, 0.5, 0.5])))
    # Differences .5 .25 .25 0: mean .25, standard error .2041 / 2, t = 2.449 with 3 degrees of freedom.
    assert row.difference.p_value == pytest.approx(0.0917, abs=1e-4)
    assert row.difference.interval is not None
    assert 0 <= row.difference.interval.low < 0.25 < row.difference.interval.high <= 0.5


def test_results_without_values_per_item_are_unpaired_and_named_so() -> None:
    before = result("a", task([0, 1], items={}, value=0.5, stderr=0.03))
    [compared] = compare([before, result("b", task([1, 1], value=0.6, stderr=0.04))]).results
    [row] = compared.rows
    assert row.difference.outcomes is None
    assert row.difference.stderr == pytest.approx(0.05)
    assert row.difference.p_value == pytest.approx(2 * normal_tail(2.0))
    assert row.difference.interval == pytest.approx((0.1 - 0.05 * 1.959964, 0.1 + 0.05 * 1.959964))
    assert any(note.startswith("sums acc,none: unpaired") for note in compared.notes)
    assert as_json(compare([before, before]))["results"][0]["rows"][0]["is_paired"] is False


def test_a_value_without_a_standard_error_has_no_test() -> None:
    before = result("a", task([0, 1], items={}, stderr=None))
    row = row_of(before, result("b", task([1, 1], items={})))
    assert (row.difference.interval, row.difference.p_value, row.verdict) == (None, None, "no test")


def test_the_judged_score_is_clustered_by_question() -> None:
    before = judged([5, 5, 5, 5], [5, 5, 5, 5])
    # Means of the questions' differences: 1, 1, 0, 2.
    row = row_of(result("a", judged=before), result("b", judged=judged([6, 7, 5, 7], [6, 5, 5, 7])))
    difference = row.difference
    assert (difference.baseline, difference.later, difference.difference) == (5, 6, 1)
    assert difference.stderr == pytest.approx(math.sqrt(2 / 3) / 2)
    assert (difference.unit, difference.num_units) == ("question", 4)
    assert difference.outcomes is not None
    assert (difference.outcomes.wins, difference.outcomes.ties, difference.outcomes.losses) == (3, 1, 0)
    # t = 2.449 with 3 degrees of freedom.
    assert difference.p_value == pytest.approx(0.0917, abs=1e-4)


def test_the_judged_difference_at_equal_length_stands_beside_the_raw_one() -> None:
    before = judged([5, 5, 5, 5], [5, 5, 5, 5], lengths=dict.fromkeys(range(4), 100.0))
    lengths = {0: 200.0, 1: 200.0, 2: 0.0, 3: 300.0}
    [compared] = compare(
        [result("a", judged=before), result("b", judged=judged([6, 7, 5, 7], [6, 5, 5, 7], lengths=lengths))]
    ).results
    controlled = compared.rows[0].difference.length_controlled
    assert controlled is not None
    assert controlled.raw.mean == 1
    assert controlled.mean < 0.8
    assert controlled.mean_length_difference == 75
    assert any("at equal length" in note and "+75 characters" in note for note in compared.notes)


def test_turns_that_not_both_have_are_left_out_and_counted() -> None:
    after = judged([6, 7, 5, 7], [6, 5, 5, 7])
    scores = {turn: score for turn, score in after.scores.items() if turn != (0, 1)}
    [compared] = compare(
        [result("a", judged=judged([5] * 4, [5] * 4)), result("b", judged=replace(after, scores=scores))]
    ).results
    assert compared.rows[0].difference.num_left_out == 1
    assert any("1 turns that not both have a readable verdict on" in note for note in compared.notes)


@pytest.mark.parametrize(
    ("condition", "value", "words"),
    [
        ("shots", 0, "different shots (5 and 0)"),
        ("limit", 10, "different limit (none and 10)"),
        ("chat template", "ab12", "different chat template (none and ab12)"),
        ("lm-eval version", "0.4.3", "different lm-eval version (0.4.13 and 0.4.3)"),
    ],
)
def test_a_different_condition_is_refused(condition: str, value: Any, words: str) -> None:
    after = task([1, 1], conditions={**CONDITIONS, condition: value})
    assert reasons(result("a", task([0, 1])), result("b", after)) == (f"a and b: sums acc,none: {words}",)


def test_different_items_are_refused() -> None:
    [reason] = reasons(result("a", task([0, 1])), result("b", task([0, 1, 1])))
    assert "different items (0 of 2 against 1 of 3, such as sums/2/hash2)" in reason


def test_different_prompts_of_the_same_items_are_refused() -> None:
    items = {"sums/0/other": 1.0, "sums/1/hash1": 0.0}
    [reason] = reasons(result("a", task([0, 1])), result("b", task([0, 1], items=items)))
    assert "different prompt hashes of the same items (1 of 2 against 1 of 2, such as sums/0/hash0)" in reason


def test_different_task_hashes_are_refused_without_items() -> None:
    after = task([0, 1], items={}, task_hash="elsewhere")
    [reason] = reasons(result("a", task([0, 1])), result("b", after))
    assert "different items or prompts (task hashes hash and elsewhere)" in reason


def test_a_different_metric_is_refused() -> None:
    [reason] = reasons(result("a", task([0, 1])), result("b", task([0, 1], metric="acc_norm,none")))
    assert "sums: different metric (acc,none and acc_norm,none)" in reason


def test_a_different_judge_is_refused() -> None:
    [reason] = reasons(result("a", judged=judged([5], [5])), result("b", judged=judged([5], [5], judge="gpt-5")))
    assert "judged score: different judge (gpt-4 and gpt-5)" in reason


def test_different_judge_prompts_are_refused() -> None:
    prompts = {(0, 1): "single-v2\nplease judge", (0, 2): "single-v1\nplease judge"}
    [reason] = reasons(result("a", judged=judged([5], [5])), result("b", judged=judged([5], [5], prompts=prompts)))
    assert "different judge prompts (single-v1 and single-v2) or references in 1 turns" in reason


def test_different_questions_are_refused() -> None:
    [reason] = reasons(result("a", judged=judged([5, 5], [5, 5])), result("b", judged=judged([5], [5])))
    assert "different questions (1 that only one has, such as 1)" in reason


def test_results_with_nothing_in_common_are_refused() -> None:
    [reason] = reasons(result("a", task([0, 1])), result("b", judged=judged([5], [5])))
    assert "nothing" not in reason
    assert "no result in common: sums acc,none against a score by the judge gpt-4" in reason


def test_every_reason_is_named_at_once() -> None:
    after = task([1, 1], conditions={**CONDITIONS, "shots": 0, "limit": 10})
    before = judged([5], [5])
    found_reasons = reasons(result("a", task([0, 1]), before), result("b", after, replace(before, judge="gpt-5")))
    assert len(found_reasons) == 3


def test_a_condition_that_one_result_does_not_record_is_named() -> None:
    conditions = {key: value for key, value in CONDITIONS.items() if key != "lm-eval version"}
    [compared] = compare([result("a", task([0, 1])), result("b", task([0, 1], conditions=conditions))]).results
    assert "b does not record: lm-eval version" in compared.notes


def test_what_only_one_result_has_is_named() -> None:
    [compared] = compare([result("a", task([0, 1]), judged([5], [5])), result("b", task([0, 1]))]).results
    assert "only in a: judged score" in compared.notes


def test_fewer_than_two_results_are_refused() -> None:
    with pytest.raises(UsageError, match="1 result is given; give two or more, the baseline first"):
        compare([result("a", task([0, 1]))])


def test_only_chooses_rows_and_refuses_an_unknown_name() -> None:
    both = [result(name, task([0, 1]), judged([5], [5])) for name in ("a", "b")]
    assert [row.name for row in compare(both, ["sums"]).results[0].rows] == ["sums acc,none"]
    assert [row.name for row in compare(both, ["judged score"]).results[0].rows] == ["judged score (gpt-4)"]
    with pytest.raises(UsageError, match="--only 'sum' is in no result; there are: sums acc,none, judged score"):
        compare(both, ["sum"])
