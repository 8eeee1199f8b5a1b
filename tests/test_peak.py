"""The peak rule: worked examples, and properties that hold for any results."""

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.peak_rule import CURVES, RULES, SHIPPED, measure
from eval.peak import Candidate, Comparison, Guard, Rule, Verdicts, choose_peak, guard_tests
from eval.ranking import average_ranks, spearman
from winnow.errors import WinnowError


def items(values: Sequence[float]) -> Guard:
    return Guard({f"item-{index}": float(value) for index, value in enumerate(values)})


def candidate(round_number: int, judged: float | None, **guards: Sequence[float]) -> Candidate:
    """Make a round without verdicts by question."""
    return Candidate(round_number, judged, guards={name: items(values) for name, values in guards.items()})


def by_question(scores: Sequence[float]) -> Verdicts:
    """Make two turns of each question around its score."""
    verdicts: dict[tuple[int | str, int], float] = {}
    for question, score in enumerate(scores):
        verdicts[question, 1] = score + 0.5
        verdicts[question, 2] = score - 0.5
    return verdicts


def judged_round(round_number: int, scores: Sequence[float], **guards: Sequence[float]) -> Candidate:
    """Make a round with verdicts by question."""
    return replace(candidate(round_number, fmean(scores), **guards), verdicts=by_question(scores))


# Without a deadline, so that a busy machine fails no test.
steady = settings(deadline=None)

# A guard of 20 items: round 0 has 15 right; "worse" loses ten of them, "a bit worse" two, "better" wins three.
START = [1] * 15 + [0] * 5
WORSE = [0] * 10 + [1] * 5 + [0] * 5
A_BIT_WORSE = [0] * 2 + [1] * 13 + [0] * 5
BETTER = [1] * 18 + [0] * 2


def test_the_highest_judged_score_wins() -> None:
    chosen = choose_peak(
        [judged_round(0, [5, 5, 5.1]), judged_round(1, [7, 7, 7.1]), judged_round(2, [6, 6, 6.1])], Rule()
    )
    assert (chosen.round, chosen.best, chosen.ties, chosen.dropped) == (1, 1, [1], {})


def test_the_paired_difference_and_its_standard_error_are_over_questions() -> None:
    rounds = [judged_round(0, [6.0, 5.0, 7.0, 6.0]), judged_round(1, [6.5, 5.1, 7.9, 6.1])]
    [comparison] = choose_peak(rounds, Rule()).comparisons
    differences = [0.5, 0.1, 0.9, 0.1]
    assert comparison.difference == pytest.approx(0.4)
    assert comparison.stderr == pytest.approx(np.std(differences, ddof=1) / 2)
    assert (comparison.round, comparison.num_questions, comparison.num_verdicts) == (0, 4, 8)


@pytest.mark.parametrize(
    ("gain", "peak", "ties"),
    [(0.049, 0, [0, 1]), (0.051, 1, [0, 1]), (0.195, 1, [0, 1]), (0.197, 1, [1])],
)
def test_a_tie_goes_to_the_earliest_round_within_half_a_paired_standard_error(
    gain: float, peak: int, ties: list[int]
) -> None:
    # The differences are gain +- 0.1 * sqrt(3) on four questions: a standard error of 0.1.
    spread = 0.1 * 3**0.5
    later = [6 + gain + spread, 5 + gain - spread, 7 + gain + spread, 8 + gain - spread]
    chosen = choose_peak([judged_round(1, later), judged_round(0, [6, 5, 7, 8])], Rule())
    assert chosen.comparisons[0].stderr == pytest.approx(0.1)
    assert (chosen.round, chosen.best, chosen.ties) == (peak, 1, ties)


def test_equal_rounds_are_tied_and_the_earliest_is_the_peak() -> None:
    rounds = [judged_round(number, [7.0, 6.0, 8.0]) for number in (2, 0, 1)]
    chosen = choose_peak(rounds, Rule())
    assert (chosen.round, chosen.best, chosen.ties) == (0, 0, [0, 1, 2])


def test_rounds_are_compared_on_the_verdicts_that_both_have() -> None:
    # Round 1 is worse on every question; its low verdicts are unreadable, and its mean is the higher one.
    complete = by_question([2.0, 3.0, 8.0, 9.0])
    flawed = {key: verdict - 0.2 for key, verdict in complete.items() if key[0] in (2, 3)}
    chosen = choose_peak([Candidate(0, 5.5, complete), Candidate(1, 8.3, flawed)], Rule())
    assert (chosen.round, chosen.best) == (0, 0)
    [comparison] = chosen.comparisons
    assert comparison.difference == pytest.approx(0.2)
    assert (comparison.num_questions, comparison.num_verdicts) == (2, 4)


def test_rounds_without_a_common_verdict_are_refused() -> None:
    first: Verdicts = {(81, 1): 7.0}
    second: Verdicts = {(82, 1): 7.0}
    with pytest.raises(WinnowError, match="rounds 0, 1 have no question and turn in common"):
        choose_peak([Candidate(0, 7.0, first), Candidate(1, 7.0, second)], Rule())


def test_without_verdicts_by_question_ties_are_not_tested() -> None:
    chosen = choose_peak([candidate(0, 6.99), candidate(2, 7.0), candidate(1, 7.0)], Rule())
    assert (chosen.round, chosen.best, chosen.ties, chosen.comparisons) == (1, 1, None, [])
    partial = choose_peak([judged_round(0, [6.0, 7.0]), candidate(1, 7.0)], Rule())
    assert (partial.round, partial.ties) == (1, None)


def test_a_single_question_tests_no_tie() -> None:
    chosen = choose_peak([judged_round(0, [6.0]), judged_round(1, [6.1])], Rule())
    assert (chosen.round, chosen.ties, chosen.comparisons[0].stderr) == (1, None, None)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_judged_score_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(WinnowError, match="round 0 has the judged score"):
        choose_peak([candidate(0, value), candidate(1, 7.0)], Rule())


def test_without_any_judged_score_the_last_kept_round_is_the_peak() -> None:
    rounds = [candidate(0, None, facts=START), candidate(1, None, facts=BETTER), candidate(2, None, facts=WORSE)]
    chosen = choose_peak(rounds, Rule())
    assert (chosen.round, chosen.best, chosen.ties) == (1, None, None)


def test_a_round_without_a_judged_score_ranks_below_a_judged_round() -> None:
    chosen = choose_peak([judged_round(0, [2.0, 2.5]), candidate(1, None)], Rule())
    assert (chosen.round, chosen.ties, chosen.comparisons) == (0, [0], [])


# --- guards -----------------------------------------------------------------------------------------------------------


def test_a_round_that_is_significantly_worse_on_a_guard_is_dropped_with_a_reason() -> None:
    rounds = [candidate(0, 5.0, facts=START), candidate(1, 6.0, facts=BETTER), candidate(2, 9.0, facts=WORSE)]
    chosen = choose_peak(rounds, Rule())
    assert chosen.round == 1
    assert chosen.dropped == {
        2: "facts lost 50.0 points (95 % interval 25.8 to 70.1) against round 0, significantly more than 0 (p = 0.002)"
    }


def test_loss_interval_and_p_value_of_kept_rounds_are_there_too() -> None:
    rounds = [candidate(0, 5.0, facts=START), candidate(1, 6.0, facts=A_BIT_WORSE), candidate(2, 9.0, facts=WORSE)]
    chosen = choose_peak(rounds, Rule())
    kept = chosen.guards[0]
    assert sorted(chosen.dropped) == [2]
    assert (kept.round, kept.guard, kept.num_items, kept.method) == (1, "facts", 20, "exact McNemar test")
    assert (kept.loss, kept.p_value, kept.uncorrected_p_value) == (0.1, 0.25, 0.25)
    assert kept.low is not None
    assert kept.high is not None
    assert kept.low < 0 < 0.1 < kept.high


def test_an_insignificant_loss_drops_no_round() -> None:
    rounds = [candidate(0, 5.0, facts=START), candidate(1, 6.0, facts=A_BIT_WORSE)]
    assert choose_peak(rounds, Rule()).dropped == {}


def test_a_loss_is_tested_against_the_tolerance() -> None:
    # 50 points are lost. They are significantly more than 20 points, and not significantly more than 40.
    rounds = [candidate(0, 5.0, facts=START), candidate(1, 6.0, facts=WORSE)]
    assert choose_peak(rounds, Rule(guard_tolerance=0.2)).round == 0
    assert choose_peak(rounds, Rule(guard_tolerance=0.4)).dropped == {}


def test_a_loss_above_the_tolerance_that_is_unproven_keeps_the_round() -> None:
    # 2.5 points on 1000 items are significantly more than 0, not than the tolerance of 2 points.
    start = [1] * 700 + [0] * 300
    later = [0] * 35 + [1] * 665 + [1] * 10 + [0] * 290
    rounds = [candidate(0, 5.0, facts=start), candidate(1, 6.0, facts=later)]
    assert choose_peak(rounds, Rule(guard_tolerance=0.0)).round == 0
    chosen = choose_peak(rounds, Rule(guard_tolerance=0.02))
    assert (chosen.round, chosen.dropped) == (1, {})
    assert chosen.guards[0].loss == 0.025


def test_a_guard_that_is_better_when_lower_is_read_in_its_direction() -> None:
    low = Guard(items(WORSE).values, higher_is_better=False)
    high = Guard(items(START).values, higher_is_better=False)
    improved = [Candidate(0, 5.0, guards={"errors": high}), Candidate(1, 6.0, guards={"errors": low})]
    chosen = choose_peak(improved, Rule())
    assert (chosen.round, chosen.guards[0].loss) == (1, -0.5)
    worsened = [Candidate(0, 5.0, guards={"errors": low}), Candidate(1, 6.0, guards={"errors": high})]
    assert choose_peak(worsened, Rule()).dropped.keys() == {1}


def test_a_guard_without_values_by_item_is_refused() -> None:
    rounds = [Candidate(number, 5.0, guards={"wiki word_perplexity,none": Guard({})}) for number in (0, 1)]
    with pytest.raises(WinnowError, match=r"wiki word_perplexity,none has no value for each item.*is_guard: false"):
        choose_peak(rounds, Rule())


def test_more_comparisons_raise_the_corrected_p_values() -> None:
    six_worse = [0] * 6 + [1] * 9 + [0] * 5
    start = candidate(0, 5.0, facts=START)
    later = candidate(1, 6.0, facts=six_worse)
    assert choose_peak([start, later], Rule()).round == 0
    more_rounds = [candidate(round_number, 5.5, facts=START) for round_number in (2, 3, 4)]
    assert choose_peak([start, later, *more_rounds], Rule()).round == 1


def test_all_later_rounds_dropped_leaves_round_0() -> None:
    rounds = [judged_round(number, [1.0 + number, 2.0], facts=WORSE if number else START) for number in (0, 1, 2)]
    chosen = choose_peak(rounds, Rule())
    assert (chosen.round, chosen.ties, sorted(chosen.dropped)) == (0, [0], [1, 2])


def test_rule_text_is_one_line_with_the_numbers() -> None:
    text = choose_peak([candidate(0, 5.0)], Rule(0.01, 0.02)).rule
    assert "alpha 0.01" in text
    assert "greater than 2 points" in text
    assert "within 0.5 paired standard errors" in text
    assert "\n" not in text


def test_choose_peak_needs_round_0() -> None:
    with pytest.raises(WinnowError, match="round 0"):
        choose_peak([candidate(1, 7.0)], Rule())


def test_rounds_with_different_items_cannot_be_compared() -> None:
    message = "facts of round 0 and facts of round 1 have different items .*: facts of round 0 alone has 'item-19'"
    with pytest.raises(WinnowError, match=message):
        choose_peak([candidate(0, 5.0, facts=START), candidate(1, 6.0, facts=START[:-1])], Rule())


def test_guard_tests_corrects_over_guards_and_rounds_together() -> None:
    start = candidate(0, 5.0, facts=START, sums=START)
    tests = guard_tests([candidate(1, 6.0, facts=WORSE, sums=START), start], Rule())
    assert [(test.round, test.guard) for test in tests] == [(1, "facts"), (1, "sums")]
    assert [test.p_value for test in tests] == [2 * 2.0**-10, 1.0]
    assert [test.uncorrected_p_value for test in tests] == [2.0**-10, 1.0]
    assert [test.loss for test in tests] == [0.5, 0.0]


# --- properties -------------------------------------------------------------------------------------------------------

question_scores = st.none() | st.lists(st.floats(1, 10), min_size=4, max_size=4)
guard_values = st.lists(st.sampled_from([0, 1]), min_size=12, max_size=12)


@st.composite
def runs(draw: st.DrawFn) -> list[Candidate]:
    candidates = []
    for round_number in range(draw(st.integers(1, 5))):
        scores = draw(question_scores)
        guard = draw(guard_values)
        if scores is None:
            candidates.append(candidate(round_number, None, facts=guard))
        else:
            candidates.append(judged_round(round_number, scores, facts=guard))
    return candidates


rules = st.builds(Rule, st.floats(0.01, 0.5), st.sampled_from([0.0, 0.02, 0.3]))
brief = settings(deadline=None, max_examples=50)


@brief
@given(runs(), rules, st.randoms())
def test_the_order_of_the_rounds_does_not_matter(rounds: list[Candidate], rule: Rule, random: st.DataObject) -> None:
    shuffled = list(rounds)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert choose_peak(shuffled, rule) == choose_peak(rounds, rule)


@brief
@given(runs(), rules)
def test_a_dropped_round_is_never_the_peak_nor_tied_with_it(rounds: list[Candidate], rule: Rule) -> None:
    chosen = choose_peak(rounds, rule)
    assert chosen.round not in chosen.dropped
    assert not set(chosen.ties or []) & set(chosen.dropped)
    assert 0 not in chosen.dropped
    if len(chosen.dropped) == len(rounds) - 1:
        assert chosen.round == 0


@brief
@given(runs(), rules)
def test_the_peak_is_tied_with_the_best_and_no_tied_round_before_it_is_closer(
    rounds: list[Candidate], rule: Rule
) -> None:
    chosen = choose_peak(rounds, rule)
    if chosen.ties is not None:
        assert {chosen.round, chosen.best} <= set(chosen.ties)
        for comparison in chosen.comparisons:
            assert comparison.difference >= -1e-9
            assert comparison.is_within(0.5) <= (comparison.round >= chosen.round)


def test_a_round_above_the_best_on_the_shared_keys_counts_as_tied() -> None:
    comparison = Comparison(round=1, difference=-0.1, stderr=0.0, num_questions=3, num_verdicts=6)
    assert comparison.is_within(0.5)


@pytest.mark.parametrize("curve", ["mid-run", "flat", "sharp"])
def test_on_mid_run_peaks_the_shipped_rule_is_near_the_best_simple_rule(curve: str) -> None:
    result = measure(curve, 0.1, 300)
    assert result["behind_best"] <= 0.02 + 2 * result["behind_best_stderr"]
    assert result["tie_set"]["holds_peak"] > 0.9
    halves = result["rules"]["within .5 paired standard error, earliest"]
    assert result["rules"][SHIPPED] == halves
    assert set(result["rules"]) == {SHIPPED, *RULES}
    assert max(CURVES[curve]) == CURVES[curve][2]


def test_ranks_of_equal_values_are_averaged() -> None:
    assert average_ranks([3.0, 1.0, 3.0, 2.0]) == [3.5, 1.0, 3.5, 2.0]


def test_spearman_of_a_textbook_example() -> None:
    # Ten pairs; their sum of squared rank differences is 194: rho = 1 - 6 * 194 / 990.
    iq = [106, 100, 86, 101, 99, 103, 97, 113, 112, 110]
    hours = [7, 27, 2, 50, 28, 29, 20, 12, 6, 17]
    assert spearman(iq, hours) == pytest.approx(1 - 6 * 194 / 990)


@steady
@given(st.lists(st.integers(-1000, 1000), min_size=2, max_size=8, unique=True))
def test_spearman_of_a_monotone_relation_is_one(values: list[int]) -> None:
    assert spearman(values, [value**3 for value in values]) == pytest.approx(1.0)
    assert spearman(values, [-value for value in values]) == pytest.approx(-1.0)


def test_spearman_is_undefined_of_constants_and_single_rounds() -> None:
    assert spearman([1.0], [2.0]) is None
    assert spearman([1.0, 2.0], [3.0, 3.0]) is None
    with pytest.raises(ValueError, match="paired"):
        spearman([1.0], [])
