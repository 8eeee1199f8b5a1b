"""What an audit computes: accuracy, RewardBench's sections, and the best-of-N curve, with worked examples."""

import math
from itertools import combinations
from statistics import fmean

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.proportion import proportion_confint

from eval.reward_audit.accuracy import ScoredPair, Side, accuracy_by_length, accuracy_by_subset, failed_statuses
from eval.reward_audit.best_of_n import GoldGroup, best_of_n, expected_gold, sizes
from eval.reward_audit.report import leaderboard_files, rewardbench_report
from eval.reward_audit.rewardbench_sections import (
    COUNTS_2024,
    COUNTS_TODAY,
    NUM_PAIRS,
    PRIOR_SETS,
    SECTIONS,
    SubsetScore,
    incomplete_subsets,
    prior_sets_score,
    section_scores,
    total_score,
)

steady = settings(deadline=None)

# Mixtral-8x7B-Instruct-v0.1 over Mixtral-8x7B-v0.1, as published in the data set allenai/reward-bench-results on the
# Hugging Face hub: eval-set/mistralai/Mixtral-8x7B-Instruct-v0.1.json (commit 70b7322) and
# pref-sets/mistralai/Mixtral-8x7B-Instruct-v0.1.json (commit 4dbe373).
MIXTRAL = {
    "alpacaeval-easy": 0.95,
    "alpacaeval-hard": 0.9052631578947369,
    "alpacaeval-length": 1.0,
    "donotanswer": 0.5588235294117647,
    "hep-cpp": 0.9573170731707317,
    "hep-go": 0.9329268292682927,
    "hep-java": 0.9512195121951219,
    "hep-js": 0.9573170731707317,
    "hep-python": 0.9207317073170732,
    "hep-rust": 0.9146341463414634,
    "llmbar-adver-GPTInst": 0.41304347826086957,
    "llmbar-adver-GPTOut": 0.5531914893617021,
    "llmbar-adver-manual": 0.6956521739130435,
    "llmbar-adver-neighbor": 0.6791044776119403,
    "llmbar-natural": 0.77,
    "math-prm": 0.6353467561521253,
    "mt-bench-easy": 0.9285714285714286,
    "mt-bench-hard": 0.7567567567567568,
    "mt-bench-med": 0.95,
    "refusals-dangerous": 0.82,
    "refusals-offensive": 0.86,
    "xstest-should-refuse": 0.7662337662337663,
    "xstest-should-respond": 0.7,
    "anthropic_helpful": 0.5284237726098191,
    "anthropic_hhh": 0.5429864253393665,
    "shp": 0.39402642159678347,
    "summarize": 0.5477777777777778,
}
MIXTRAL_SCORES = {subset: SubsetScore(score, NUM_PAIRS[subset]) for subset, score in MIXTRAL.items()}


def pair(
    chosen: float | None, rejected: float | None, chars: tuple[int, int] = (1, 1), subset: str = "a"
) -> ScoredPair:
    """Return a pair with these rewards; its token counts are the character counts in reverse."""
    statuses = ["ok" if reward is not None else "too_long" for reward in (chosen, rejected)]
    return ScoredPair(
        subset, Side(chosen, statuses[0], chars[0], chars[1]), Side(rejected, statuses[1], chars[1], chars[0])
    )


def test_ties_and_failures_are_in_no_accuracy() -> None:
    pairs = [pair(2.0, 1.0)] * 3 + [pair(1.0, 2.0), pair(1.0, 1.0), pair(None, 1.0), pair(None, None)]
    accuracy = accuracy_by_subset([*pairs, pair(1.0, 1.0, subset="b")])
    a = accuracy["a"]
    assert (a.num_right, a.num_wrong, a.num_ties, a.num_failed, a.num_pairs) == (3, 1, 1, 2, 7)
    assert a.accuracy == 0.75
    assert a.interval == pytest.approx(proportion_confint(3, 4, method="wilson"))
    assert a.share_right == 3 / 7
    assert (accuracy["b"].accuracy, accuracy["b"].interval, accuracy["b"].num_ties) == (None, None, 1)
    assert failed_statuses(pairs) == {"too_long": 3}


def test_length_bias_shows_where_the_chosen_completion_is_shorter() -> None:
    # The reward is the length in characters; tokens are counted the other way round.
    lengths = [(1, 5), (2, 5), (5, 1), (3, 3)]
    pairs = [pair(float(chosen), float(rejected), (chosen, rejected)) for chosen, rejected in lengths]
    pairs.append(pair(None, 3.0, (0, 3)))
    characters = accuracy_by_length(pairs, "characters")
    assert {name: (value.accuracy, value.num_pairs) for name, value in characters.items()} == {
        "chosen is shorter": (0.0, 2),
        "equal": (None, 1),
        "chosen is longer": (1.0, 1),
    }
    tokens = accuracy_by_length(pairs, "tokens")
    assert {name: (value.accuracy, value.num_pairs) for name, value in tokens.items()} == {
        "chosen is shorter": (1.0, 1),
        "equal": (None, 1),
        "chosen is longer": (0.0, 2),
    }


def test_mixtrals_published_score_comes_from_its_published_subset_scores() -> None:
    """The leaderboard of May 2024 shows 74.7 = 95.0, 64.0, 73.4, 78.7, 50.3; today's, without Prior Sets, 77.6."""
    prior_sets = prior_sets_score(MIXTRAL_SCORES)
    assert prior_sets is not None
    then = section_scores(MIXTRAL_SCORES, COUNTS_2024)
    shown = [round(100 * then[section].value, 1) for section in ("Chat", "Chat Hard", "Safety", "Reasoning")]
    assert [*shown, round(100 * prior_sets.value, 1)] == [95.0, 64.0, 73.4, 78.7, 50.3]
    total = total_score(then, prior_sets)
    assert total is not None
    assert round(100 * total.value, 1) == 74.7
    today = total_score(section_scores(MIXTRAL_SCORES))
    assert today is not None
    assert round(100 * today.value, 1) == 77.6


def test_sections_equal_numpys_weighted_averages() -> None:
    for counts in (COUNTS_TODAY, COUNTS_2024):
        sections = section_scores(MIXTRAL_SCORES, counts)
        for section, subsets in SECTIONS.items():
            weights = [counts[subset] for subset in subsets]
            assert sections[section].value == pytest.approx(np.average([MIXTRAL[s] for s in subsets], weights=weights))
        values = [*(score.value for score in sections.values()), fmean(MIXTRAL[subset] for subset in PRIOR_SETS)]
        total = total_score(sections, prior_sets_score(MIXTRAL_SCORES))
        assert total is not None
        assert total.value == pytest.approx(np.average(values, weights=[2, 2, 2, 2, 1]))


def test_the_standard_error_of_a_section_follows_its_weights() -> None:
    scores = {subset: SubsetScore(1.0, 100) for subset in SECTIONS["Reasoning"]} | {"math-prm": SubsetScore(0.5, 447)}
    # Only math-prm varies, and it weighs one half: sqrt(0.5 * 0.5 / 447) / 2.
    assert section_scores(scores)["Reasoning"].stderr == pytest.approx(0.5 * math.sqrt(0.25 / 447))


def test_rewardbenchs_data_sizes_agree_with_the_published_scores() -> None:
    for subset, score in MIXTRAL.items():
        num_right = score * NUM_PAIRS[subset]
        assert num_right == pytest.approx(round(num_right), abs=1e-6), subset


def test_a_section_that_lacks_a_subset_has_no_score() -> None:
    scores = {subset: score for subset, score in MIXTRAL_SCORES.items() if subset not in ("hep-go", "shp")}
    sections = section_scores(scores)
    assert "Reasoning" not in sections
    assert "Chat" in sections
    assert total_score(sections) is None
    assert prior_sets_score(scores) is None
    assert incomplete_subsets({"hep-go": 164, "hep-cpp": 10, "natural": 3}) == {"hep-cpp": (10, 164)}


def test_rewardbenchs_form_counts_a_tie_as_a_loss_and_says_so() -> None:
    pairs = [pair(2.0, 1.0, subset="hep-go"), pair(1.0, 1.0, subset="hep-go"), pair(2.0, 1.0, subset="shp")]
    models = {"instruct": {"name": "org/tuned", "chat_template": "lab"}, "base": {"name": "org/base"}}
    files = leaderboard_files([*pairs, pair(2.0, 1.0, subset="mine")], models, is_reference_free=False)
    header = {"model": "org/tuned", "ref_model": "org/base", "model_type": "DPO", "chat_template": "lab"}
    assert files == {"eval-set.json": {**header, "hep-go": 0.5}, "pref-sets.json": {**header, "shp": 1.0}}
    alone = leaderboard_files(pairs, models, is_reference_free=True)["eval-set.json"]
    assert (alone["ref_model"], alone["model_type"]) == (None, "DPO Ref. Free")
    report = rewardbench_report(accuracy_by_subset(pairs))
    assert report["ties_counted_as_losses"] == 1
    assert report["incomplete_subsets"] == {"hep-go": (2, 164), "shp": (1, 1741)}
    assert len(report["missing_subsets"]) == 22


def brute_force_gold(rewards: list[float], golds: list[float], n: int) -> float:
    """Return the mean over all subsets of size n of the mean gold of those with the subset's highest reward."""
    values = []
    for subset in combinations(range(len(rewards)), n):
        highest = max(rewards[index] for index in subset)
        values.append(fmean(golds[index] for index in subset if rewards[index] == highest))
    return fmean(values)


@steady
@given(
    st.lists(st.tuples(st.sampled_from([0.0, 1.0, 2.0, 5.0]), st.floats(-3, 3)), min_size=1, max_size=7),
    st.integers(1, 7),
)
def test_the_estimate_is_the_mean_over_all_subsets(completions: list[tuple[float, float]], n: int) -> None:
    rewards = [reward for reward, _ in completions]
    golds = [gold for _, gold in completions]
    n = min(n, len(rewards))
    assert expected_gold(rewards, golds, n) == pytest.approx(brute_force_gold(rewards, golds, n), abs=1e-9)


def test_the_curve_counts_every_prompt_with_enough_completions() -> None:
    groups = [GoldGroup((1.0, 2.0, 3.0), (0.0, 0.0, 1.0)), GoldGroup((1.0, 2.0), (1.0, 0.0)), GoldGroup((1.0,), (1.0,))]
    audit = best_of_n(groups)
    assert [(point.n, point.gold.n) for point in audit.curve] == [(1, 3), (2, 2), (3, 1)]
    # n = 2: the first prompt's best of two is the third in 2 of 3 subsets, the second prompt's is the second.
    assert audit.curve[1].gold.mean == pytest.approx((2 / 3 + 0.0) / 2)
    gains = [2 / 3 - 1 / 3, 0.0 - 0.5]
    assert audit.curve[1].gold_gain.mean == pytest.approx(fmean(gains))
    assert audit.curve[1].gold_gain.stderr == pytest.approx(float(scipy.stats.sem(gains)))
    assert audit.curve[1].oracle_gain.mean == pytest.approx(fmean([2 / 3 - 1 / 3, 1.0 - 0.5]))
    assert audit.curve[1].reward_gain.mean == pytest.approx(fmean([8 / 3 - 2, 0.5]))
    assert audit.curve[2].gold_gain.stderr is None
    assert audit.rank_correlation is not None
    correlations = [scipy.stats.spearmanr([1, 2, 3], [0, 0, 1]).statistic, -1.0]
    assert audit.rank_correlation.mean == pytest.approx(fmean(correlations))
    assert audit.num_constant == 1


def test_gold_against_reward_is_by_rank_within_the_prompt() -> None:
    # The second prompt's rewards are all higher, which must not matter.
    golds = (0.0, 1.0, 2.0, 3.0, 4.0)
    groups = [GoldGroup((1.0, 2.0, 3.0, 4.0, 5.0), golds), GoldGroup((101.0, 102.0, 103.0, 104.0, 105.0), golds)]
    bins = best_of_n(groups).bins
    assert [(rank_bin.number, rank_bin.num_completions, rank_bin.gold.n) for rank_bin in bins] == [
        (number, 2, 2) for number in range(1, 6)
    ]
    assert [rank_bin.gold.mean for rank_bin in bins] == list(golds)
    assert [rank_bin.gold_excess.mean for rank_bin in bins] == [-2.0, -1.0, 0.0, 1.0, 2.0]
    assert [rank_bin.reward_excess.mean for rank_bin in bins] == [-2.0, -1.0, 0.0, 1.0, 2.0]
    assert all(rank_bin.gold.stderr == 0.0 for rank_bin in bins)


def test_equal_rewards_and_a_single_completion_have_no_rank_correlation() -> None:
    audit = best_of_n([GoldGroup((1.0, 1.0), (0.0, 1.0)), GoldGroup((3.0,), (1.0,))])
    assert (audit.rank_correlation, audit.num_constant) == (None, 2)
    assert [rank_bin.number for rank_bin in audit.bins] == [3]
    assert audit.curve[1].gold.mean == 0.5


def test_the_curve_keeps_the_largest_n() -> None:
    assert sizes(1) == [1]
    assert sizes(16) == list(range(1, 17))
    assert sizes(100)[-4:] == [16, 32, 64, 100]
    with pytest.raises(ValueError, match="at least one prompt"):
        best_of_n([])
