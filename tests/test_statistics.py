"""The statistics of results against scipy and statsmodels."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import scipy.stats
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import DescrStatsW

from eval.statistics.bootstrap import MAX_DISTINCT, NUM_DRAWS, bootstrap_interval, bootstrap_means
from eval.statistics.distributions import normal_quantile, normal_tail, student_quantile, student_tail
from eval.statistics.estimates import clustered_estimate, estimate, stratified_estimate
from eval.statistics.holm import holm, holm_family
from eval.statistics.intervals import wilson_interval
from eval.statistics.length_control import least_squares, length_controlled
from eval.statistics.mcnemar import mcnemar_p_value, outcomes
from eval.statistics.pairing import paired_differences, shared_differences
from eval.statistics.power import smallest_visible_difference, smallest_visible_shift
from winnow.errors import WinnowError

# Without a deadline, so that a busy machine fails no test.
steady = settings(deadline=None)


def changes(worse: int, better: int, equal: int) -> list[float]:
    return [-1.0] * worse + [1.0] * better + [0.0] * equal


# --- distributions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degrees", [1, 2, 5, 29, 79, 1318, 14041])
def test_student_tails_and_quantiles_equal_scipy(degrees: int) -> None:
    for t in (-40.0, -3.0, -0.5, 0.0, 0.01, 1.0, 2.5, 6.0, 30.0):
        assert student_tail(t, degrees) == pytest.approx(scipy.stats.t.sf(t, degrees), rel=1e-9, abs=1e-300)
    for probability in (0.005, 0.025, 0.4, 0.5, 0.8, 0.975, 0.9995):
        expected = scipy.stats.t.ppf(probability, degrees)
        assert student_quantile(probability, degrees) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_normal_tails_and_quantiles_equal_scipy() -> None:
    for z in (-8.0, -1.0, 0.0, 1.96, 8.0, 20.0):
        assert normal_tail(z) == pytest.approx(scipy.stats.norm.sf(z), rel=1e-12)
    for probability in (1e-6, 0.025, 0.5, 0.975):
        assert normal_quantile(probability) == pytest.approx(scipy.stats.norm.ppf(probability), abs=1e-12)


# --- pairing ----------------------------------------------------------------------------------------------------------


def test_paired_differences_names_the_items_that_only_one_result_has() -> None:
    earlier = {"a": 1.0, "b": 1.0, "c": 0.0, "d": 0.0, "e": 1.0}
    with pytest.raises(WinnowError, match="round 0 alone has 'b', 'c', 'd' and 1 more; round 1 alone has 'z'"):
        paired_differences(earlier, {"a": 0.0, "z": 1.0}, ("round 0", "round 1"))
    with pytest.raises(WinnowError, match="round 0 alone has 'e'; round 1 alone has none"):
        paired_differences(earlier, dict(list(earlier.items())[:-1]), ("round 0", "round 1"))


def test_a_value_that_is_not_finite_cannot_be_paired() -> None:
    with pytest.raises(WinnowError, match=r"round 1: the value of \(81, 1\) is nan"):
        shared_differences({(81, 1): 1.0}, {(81, 1): math.nan}, ("round 0", "round 1"))


# --- tests of paired items --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("worse", "better"), [(0, 0), (5, 0), (3, 4), (9, 2), (0, 7), (61, 40), (800, 700)])
def test_mcnemar_equals_scipy_and_statsmodels(worse: int, better: int) -> None:
    differences = changes(worse, better, 30)
    if worse + better:
        one_sided = scipy.stats.binomtest(worse, worse + better, alternative="greater").pvalue
        assert mcnemar_p_value(differences) == pytest.approx(one_sided, rel=1e-10)
    two_sided = mcnemar([[30, worse], [better, 0]], exact=True).pvalue
    assert outcomes(differences).p_value == pytest.approx(two_sided, rel=1e-10)


def test_mcnemar_equals_a_count_of_all_outcomes() -> None:
    for worse, better in [(0, 0), (5, 0), (3, 4), (9, 2), (0, 7)]:
        num_changed = worse + better
        num_outcomes = sum(bin(outcome).count("1") >= worse for outcome in range(2**num_changed))
        assert mcnemar_p_value(changes(worse, better, 3)) == num_outcomes / 2**num_changed


def test_mcnemar_of_a_whole_benchmark() -> None:
    assert mcnemar_p_value(changes(3000, 2700, 8000)) == pytest.approx(3.8e-5, rel=0.05)


def test_outcomes_take_rounding_for_a_tie() -> None:
    counts = outcomes([0.1 + 0.2 - 0.3, 0.5, -0.5, -0.5])
    assert (counts.wins, counts.ties, counts.losses) == (1, 1, 2)
    assert counts.win_rate == 0.375
    assert outcomes([]).win_rate is None


p_values = st.lists(st.floats(0, 1), max_size=8)


@pytest.mark.parametrize("size", [1, 2, 5, 15])
def test_holm_equals_statsmodels(size: int) -> None:
    values = (np.random.default_rng(size).random(size) ** 3).tolist()
    assert holm(values) == pytest.approx(multipletests(values, method="holm")[1], rel=1e-12)


@steady
@given(p_values)
def test_holm_is_never_below_the_p_value_and_never_above_bonferroni(values: list[float]) -> None:
    for value, corrected in zip(values, holm(values), strict=True):
        assert value <= corrected <= min(1.0, len(values) * value)


@steady
@given(p_values)
def test_holm_keeps_the_order(values: list[float]) -> None:
    pairs = sorted(zip(values, holm(values), strict=True))
    assert [corrected for _, corrected in pairs] == sorted(corrected for _, corrected in pairs)


def test_holm_family_keeps_the_names() -> None:
    family = {(1, "mmlu"): 0.04, (2, "mmlu"): 0.01, (1, "gsm8k"): 0.9}
    assert holm_family(family) == {(1, "mmlu"): 0.08, (2, "mmlu"): 0.03, (1, "gsm8k"): 0.9}


# --- means and intervals ----------------------------------------------------------------------------------------------


def test_an_estimate_and_its_interval_equal_statsmodels() -> None:
    values = np.random.default_rng(0).normal(7, 2, 80).tolist()
    result = estimate(values)
    reference = DescrStatsW(values)
    assert (result.mean, result.stderr) == pytest.approx((reference.mean, reference.std_mean))
    assert result.interval() == pytest.approx(reference.tconfint_mean(0.05))


def test_a_single_value_has_no_standard_error_and_equal_values_have_zero() -> None:
    single = estimate([5.0])
    assert (single.stderr, single.interval()) == (None, None)
    equal = estimate([5.0, 5.0])
    assert (equal.stderr, equal.interval()) == (0.0, (5.0, 5.0))
    with pytest.raises(ValueError, match="at least one value"):
        estimate([])


def test_standard_errors_over_questions_equal_cluster_robust_least_squares() -> None:
    generator = np.random.default_rng(1)
    difficulty = generator.normal(0, 2, 80)
    verdicts = {}
    for question in range(80):
        for turn in (1, 2):
            verdicts[question, turn] = 7 + difficulty[question] + generator.normal()
    result = clustered_estimate(verdicts, lambda key: key[0])
    groups = [question for question, _ in verdicts]
    fit = sm.OLS(list(verdicts.values()), np.ones(160)).fit(cov_type="cluster", cov_kwds={"groups": groups})
    assert (result.mean, result.stderr, result.n) == pytest.approx((fit.params[0], fit.bse[0], 80))
    over_verdicts = estimate(verdicts.values()).stderr
    assert over_verdicts is not None
    assert result.stderr is not None
    assert result.stderr > 1.3 * over_verdicts


@pytest.mark.parametrize(("num_right", "n"), [(0, 20), (20, 20), (1, 7), (15, 20), (731, 1319)])
def test_wilson_equals_statsmodels(num_right: int, n: int) -> None:
    expected = proportion_confint(num_right, n, method="wilson")
    assert wilson_interval(num_right, n) == pytest.approx(expected, abs=1e-12)


def test_wilson_refuses_what_is_no_proportion() -> None:
    with pytest.raises(ValueError, match="3 of 2 items"):
        wilson_interval(3, 2)
    with pytest.raises(ValueError, match="0 of 0 items"):
        wilson_interval(0, 0)


def test_stratified_means_equal_weighted_least_squares_of_the_strata() -> None:
    generator = np.random.default_rng(2)
    strata = {f"subject {n}": (generator.random(20 + 15 * n) < 0.3 + n / 10).astype(float).tolist() for n in range(5)}
    result = stratified_estimate(strata)
    everything = np.concatenate(list(strata.values()))
    assert result.by_size == pytest.approx(everything.mean())
    assert result.by_subject == pytest.approx(np.mean([np.mean(values) for values in strata.values()]))
    # A model with a free mean and a free variance for each stratum; the estimates are its contrasts.
    errors = np.array([scipy.stats.sem(values) for values in strata.values()])
    shares = np.array([len(values) for values in strata.values()]) / len(everything)
    assert result.by_size_stderr == pytest.approx(np.sqrt(shares @ np.diag(errors**2) @ shares))
    assert result.by_subject_stderr == pytest.approx(np.sqrt((errors**2).sum()) / 5)
    assert (result.num_items, result.num_strata) == (len(everything), 5)


def test_the_stratified_standard_error_equals_the_spread_of_repeated_samples() -> None:
    generator = np.random.default_rng(3)
    shares = {"a": (0.9, 30), "b": (0.3, 200)}
    results = []
    for _ in range(400):
        strata = {k: ((generator.random(n) < p) * 1.0).tolist() for k, (p, n) in shares.items()}
        results.append(stratified_estimate(strata))
    for name in ("by_size", "by_subject"):
        spread = np.std([getattr(result, name) for result in results])
        assert np.mean([getattr(result, f"{name}_stderr") for result in results]) == pytest.approx(spread, rel=0.1)


def test_a_stratum_of_one_item_leaves_the_standard_error_open() -> None:
    result = stratified_estimate({"a": [1.0], "b": [1.0, 0.0]})
    assert (result.by_subject, result.by_size_stderr, result.by_subject_stderr) == (0.75, None, None)
    with pytest.raises(ValueError, match="every stratum"):
        stratified_estimate({"a": [], "b": [1.0]})


# --- bootstrap --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["binary", "scores"])
def test_the_bootstrap_interval_equals_scipy(kind: str) -> None:
    generator = np.random.default_rng(4)
    values = generator.normal(0.1, 1, 80) if kind == "scores" else generator.choice([-1.0, 0.0, 1.0], 300)
    reference = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(5)
    )
    interval = bootstrap_interval(values, seed=6, num_draws=20_000)
    assert interval == pytest.approx(tuple(reference.confidence_interval), abs=0.03 * reference.standard_error * 2)


def test_the_bootstrap_takes_true_quantiles_of_its_draws() -> None:
    values = np.random.default_rng(7).normal(size=40)
    means = np.sort(bootstrap_means(values, np.random.default_rng(8), 10_000))
    interval = bootstrap_interval(values, seed=8)
    assert interval is not None
    # Position (K - 1) q: 249.975 and 9749.025.
    assert interval.low == pytest.approx(means[249] + 0.975 * (means[250] - means[249]))
    assert interval.high == pytest.approx(means[9749] + 0.025 * (means[9750] - means[9749]))
    assert len(means) == NUM_DRAWS == 10_000


def test_both_ways_to_draw_have_the_same_distribution() -> None:
    few = np.repeat(np.arange(MAX_DISTINCT, dtype=float), 5)
    many = np.append(few, few.mean() + 1e-9)  # one more distinct value, so that units are drawn
    first = bootstrap_means(few, np.random.default_rng(9), 20_000)
    second = bootstrap_means(many, np.random.default_rng(10), 20_000)
    assert first.mean() == pytest.approx(second.mean(), abs=0.02)
    assert first.std() == pytest.approx(second.std(), rel=0.03)


def test_equal_seeds_give_equal_intervals() -> None:
    values = np.random.default_rng(11).normal(size=50)
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)


def test_the_bootstrap_of_one_unit_is_not_estimable_and_of_equal_units_a_point() -> None:
    assert bootstrap_interval([1.0], seed=0) is None
    assert bootstrap_interval([2.0, 2.0, 2.0], seed=0) == (2.0, 2.0)


# --- power ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "points"), [(14042, 0.53), (1172, 1.83), (10042, 0.62), (1267, 1.76), (1319, 1.72)])
def test_smallest_visible_differences_of_the_card_suite(n: int, points: float) -> None:
    difference = smallest_visible_difference(n, 0.05)
    assert difference is not None
    assert 100 * difference == pytest.approx(points, abs=0.01)


def test_a_difference_of_the_smallest_visible_size_is_seen_as_often_as_promised() -> None:
    difference = smallest_visible_difference(1319, 0.2, alpha=0.05, power=0.8)
    assert difference is not None
    cells = [0.1 + difference / 2, 0.1 - difference / 2, 0.8]
    counts = np.random.default_rng(12).multinomial(1319, cells, size=20_000)
    z = (counts[:, 0] - counts[:, 1]) / np.sqrt(counts[:, 0] + counts[:, 1])
    assert np.mean(z > 1.959964) == pytest.approx(0.8, abs=0.012)


def test_no_difference_is_visible_in_few_items_that_seldom_change() -> None:
    assert smallest_visible_difference(20, 0.05) is None
    with pytest.raises(ValueError, match="discordance"):
        smallest_visible_difference(20, 0.0)


def test_the_smallest_visible_shift_has_the_power_that_statsmodels_computes() -> None:
    from statsmodels.stats.power import NormalIndPower

    shift = smallest_visible_shift(0.1, alpha=0.05, power=0.8)
    # One sample (ratio 0) of 100 differences with standard deviation 1 has a standard error of 0.1.
    power = NormalIndPower().power(shift, nobs1=100, alpha=0.05, ratio=0, alternative="larger")
    two_sided = NormalIndPower().power(shift, nobs1=100, alpha=0.05, ratio=0)
    assert two_sided == pytest.approx(0.8, abs=1e-4)
    assert power > two_sided


# --- length -----------------------------------------------------------------------------------------------------------


def paired_questions(slope: float) -> tuple[dict[int, float], dict[int, float]]:
    generator = np.random.default_rng(13)
    lengths = generator.normal(300, 400, 80)
    scores = 0.2 + slope * np.tanh(lengths / lengths.std(ddof=1)) + generator.normal(0, 0.5, 80)
    return dict(enumerate(scores.tolist())), dict(enumerate(lengths.tolist()))


def test_the_length_controlled_difference_equals_statsmodels() -> None:
    scores, lengths = paired_questions(0.8)
    result = length_controlled(scores, lengths)
    assert result is not None
    values = np.array(list(lengths.values()))
    design = sm.add_constant(np.tanh(values / values.std(ddof=1)))
    fit = sm.OLS(list(scores.values()), design).fit(cov_type="HC3", use_t=True)
    assert (result.mean, result.slope) == pytest.approx(tuple(fit.params))
    assert result.stderr == pytest.approx(fit.bse[0])
    assert result.interval == pytest.approx(tuple(fit.conf_int()[0]))


def test_length_control_takes_the_length_out_of_the_difference() -> None:
    scores, lengths = paired_questions(0.8)
    result = length_controlled(scores, lengths)
    assert result is not None
    assert result.raw.mean > 0.5
    assert result.interval.low < 0.2 < result.interval.high


@pytest.mark.parametrize("lengths", [[5.0, 5.0, 5.0], [0.0, 0.0, 0.0], [1.0, 2.0]])
def test_length_control_needs_lengths_that_vary(lengths: Sequence[float]) -> None:
    keyed = dict(enumerate(lengths))
    assert length_controlled(dict.fromkeys(keyed, 1.0), keyed) is None


def test_length_control_names_unpaired_questions() -> None:
    with pytest.raises(WinnowError, match="alone: 82, 83"):
        length_controlled({81: 1.0, 82: 1.0}, {81: 1.0, 83: 1.0})


def test_a_question_that_alone_has_another_length_is_fitted_without_a_division_by_zero() -> None:
    design = np.column_stack([np.ones(4), [0.0, 0.0, 0.0, 1.0]])
    coefficients, covariance = least_squares(design, np.array([1.0, 2.0, 3.0, 9.0]))
    assert coefficients == pytest.approx([2.0, 7.0])
    assert np.isfinite(covariance).all()
