"""The peak rule: worked examples, and properties that hold for any results."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.peak import Candidate, Rule, choose_peak, guard_tests
from eval.ranking import average_ranks, spearman
from winnow.errors import WinnowError


def items(values: Sequence[float]) -> dict[str, float]:
    return {f"item-{index}": float(value) for index, value in enumerate(values)}


def candidate(
    round_number: int, judged: float | None, reward: float | None = None, **guards: Sequence[float]
) -> Candidate:
    return Candidate(round_number, judged, reward, {name: items(values) for name, values in guards.items()})


# Without a deadline, so that a busy machine fails no test.
steady = settings(deadline=None)

# A guard of 20 items: round 0 has 15 right; "worse" loses ten of them, "a bit worse" two, "better" wins three.
START = [1] * 15 + [0] * 5
WORSE = [0] * 10 + [1] * 5 + [0] * 5
A_BIT_WORSE = [0] * 2 + [1] * 13 + [0] * 5
BETTER = [1] * 18 + [0] * 2


def test_the_highest_judged_score_wins_and_later_rounds_do_not_matter() -> None:
    chosen = choose_peak([candidate(0, 5.0), candidate(1, 7.0, 1.0), candidate(2, 6.5, 9.0)], Rule())
    assert (chosen.round, chosen.ties, chosen.dropped) == (1, [1], {})


def test_ties_within_the_tolerance_go_to_the_batch_reward() -> None:
    rounds = [candidate(0, 6.96), candidate(1, 7.0, 1.0), candidate(2, 6.95, 1.5), candidate(3, 6.8, 9.0)]
    chosen = choose_peak(rounds, Rule(judge_tolerance=0.1))
    assert (chosen.round, chosen.ties) == (2, [0, 1, 2])


def test_ties_in_batch_reward_go_to_the_earlier_round() -> None:
    rounds = [candidate(2, 7.0, 1.0), candidate(1, 7.0, 1.0), candidate(0, 5.0)]
    assert choose_peak(rounds, Rule()).round == 1


def test_round_0_has_no_batch_reward_and_loses_ties() -> None:
    assert choose_peak([candidate(0, 7.0), candidate(1, 7.0, -3.0)], Rule()).round == 1


def test_a_round_that_is_significantly_worse_on_a_guard_is_dropped_with_a_reason() -> None:
    rounds = [candidate(0, 5.0, facts=START), candidate(1, 6.0, 1.0, facts=BETTER), candidate(2, 9.0, 2.0, facts=WORSE)]
    chosen = choose_peak(rounds, Rule())
    assert chosen.round == 1
    assert chosen.dropped == {2: "facts is 50.0 points below round 0 (p = 0.002)"}


def test_an_insignificant_loss_drops_no_round() -> None:
    rounds = [candidate(0, 5.0, facts=START), candidate(1, 6.0, 1.0, facts=A_BIT_WORSE)]
    assert choose_peak(rounds, Rule()).dropped == {}


def test_a_significant_loss_within_the_tolerance_is_accepted() -> None:
    rounds = [candidate(0, 5.0, facts=START), candidate(1, 6.0, 1.0, facts=WORSE)]
    assert choose_peak(rounds, Rule(guard_tolerance=0.5)).dropped == {}
    assert choose_peak(rounds, Rule(guard_tolerance=0.49)).round == 0


def test_more_comparisons_raise_the_corrected_p_values() -> None:
    six_worse = [0] * 6 + [1] * 9 + [0] * 5
    start = candidate(0, 5.0, facts=START)
    later = candidate(1, 6.0, 1.0, facts=six_worse)
    assert choose_peak([start, later], Rule()).round == 0
    more_rounds = [candidate(round_number, 5.5, 1.0, facts=START) for round_number in (2, 3, 4)]
    assert choose_peak([start, later, *more_rounds], Rule()).round == 1


def test_all_later_rounds_dropped_leaves_round_0() -> None:
    rounds = [candidate(0, 1.0, facts=START), candidate(1, 9.0, 1.0, facts=WORSE), candidate(2, 9.0, 2.0, facts=WORSE)]
    chosen = choose_peak(rounds, Rule())
    assert (chosen.round, chosen.ties, sorted(chosen.dropped)) == (0, [0], [1, 2])


def test_without_any_judged_score_the_batch_reward_decides() -> None:
    chosen = choose_peak([candidate(0, None), candidate(1, None, 1.0), candidate(2, None, 0.5)], Rule())
    assert (chosen.round, chosen.ties) == (1, [0, 1, 2])


def test_a_round_without_a_judged_score_ranks_below_a_judged_round() -> None:
    assert choose_peak([candidate(0, 2.0), candidate(1, None, 1.0)], Rule()).ties == [0]


def test_rule_text_is_one_line_with_the_numbers() -> None:
    text = choose_peak([candidate(0, 5.0)], Rule(0.01, 0.02, 0.3)).rule
    assert "alpha 0.01" in text
    assert "tolerance 0.02" in text
    assert "within 0.3" in text
    assert "\n" not in text


def test_choose_peak_needs_round_0() -> None:
    with pytest.raises(WinnowError, match="round 0"):
        choose_peak([candidate(1, 7.0, 1.0)], Rule())


def test_rounds_with_different_items_cannot_be_compared() -> None:
    with pytest.raises(WinnowError, match="round 1 and round 0 were evaluated on different items"):
        choose_peak([candidate(0, 5.0, facts=START), candidate(1, 6.0, 1.0, facts=START[:-1])], Rule())


def test_guard_tests_corrects_over_guards_and_rounds_together() -> None:
    start = candidate(0, 5.0, facts=START, sums=START)
    tests = guard_tests([candidate(1, 6.0, facts=WORSE, sums=START), start])
    assert [(test.round, test.guard) for test in tests] == [(1, "facts"), (1, "sums")]
    assert [test.p_value for test in tests] == [2 * 2.0**-10, 1.0]
    assert [test.loss for test in tests] == [0.5, 0.0]


scores = st.none() | st.floats(1, 10)
rewards = st.none() | st.floats(-5, 5)
guard_values = st.lists(st.sampled_from([0, 1]), min_size=12, max_size=12)


@st.composite
def runs(draw: st.DrawFn) -> list[Candidate]:
    candidates = [candidate(0, draw(scores), facts=draw(guard_values))]
    for round_number in range(1, draw(st.integers(1, 5))):
        candidates.append(candidate(round_number, draw(scores), draw(rewards), facts=draw(guard_values)))
    return candidates


rules = st.builds(Rule, st.floats(0.01, 0.5), st.floats(0, 0.5), st.floats(0, 3))


@steady
@given(runs(), rules, st.randoms())
def test_the_order_of_the_rounds_does_not_matter(rounds: list[Candidate], rule: Rule, random: st.DataObject) -> None:
    shuffled = list(rounds)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert choose_peak(shuffled, rule) == choose_peak(rounds, rule)


@steady
@given(runs(), rules)
def test_a_dropped_round_is_never_the_peak_nor_tied_with_it(rounds: list[Candidate], rule: Rule) -> None:
    chosen = choose_peak(rounds, rule)
    assert chosen.round in chosen.ties
    assert not set(chosen.ties) & set(chosen.dropped)
    assert 0 not in chosen.dropped
    if len(chosen.dropped) == len(rounds) - 1:
        assert chosen.round == 0


@steady
@given(runs(), rules)
def test_no_kept_round_is_judged_better_by_more_than_the_tolerance(rounds: list[Candidate], rule: Rule) -> None:
    chosen = choose_peak(rounds, rule)
    kept = [row for row in rounds if row.round not in chosen.dropped]
    kept_scores = [row.judge_score for row in kept if row.judge_score is not None]
    peak_score = next(row.judge_score for row in kept if row.round == chosen.round)
    if kept_scores:
        assert peak_score is not None
        assert peak_score >= max(kept_scores) - rule.judge_tolerance


@steady
@given(runs(), rules)
def test_the_peak_stays_the_peak_with_a_higher_judged_score(rounds: list[Candidate], rule: Rule) -> None:
    chosen = choose_peak(rounds, rule)
    better = [replace(row, judge_score=20.0) if row.round == chosen.round else row for row in rounds]
    assert choose_peak(better, rule).round == chosen.round


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
