"""The test that a loss exceeds a tolerance: against brute force and scipy, with its size and power."""

import math

import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from eval.statistics.loss_test import MAX_EXACT, loss_test
from eval.statistics.paired_scores import MISS, exact_p_value, score_interval, score_statistic


def changes(worse: int, better: int, equal: int) -> list[float]:
    return [-1.0] * worse + [1.0] * better + [0.0] * equal


def brute_statistic(worse: int, better: int, n: int, loss: float) -> float:
    """Maximise the likelihood under the null hypothesis numerically."""

    def cost(share: float) -> float:
        cells = np.array([share + loss, share, 1 - 2 * share - loss])
        counts = np.array([worse, better, n - worse - better])
        return -float(scipy.special.xlogy(counts, cells).sum())

    low = max(0.0, -loss)
    options = {"xatol": 1e-12}
    share = scipy.optimize.minimize_scalar(cost, bounds=(low, (1 - loss) / 2), method="bounded", options=options).x
    return float((worse - better - n * loss) / math.sqrt(n * (2 * share + loss - loss**2)))


@pytest.mark.parametrize("loss", [-0.3, -0.02, 0.0, 0.01, 0.02, 0.1, 0.5])
@pytest.mark.parametrize(("worse", "better", "n"), [(43, 23, 200), (5, 1, 50), (10, 3, 20), (1, 12, 90)])
def test_the_score_statistic_equals_a_numerical_maximum(worse: int, better: int, n: int, loss: float) -> None:
    statistic = float(score_statistic(worse, better, n, loss))
    assert statistic == pytest.approx(brute_statistic(worse, better, n, loss), abs=1e-5)


def test_the_score_statistic_at_zero_is_mcnemars() -> None:
    assert float(score_statistic(30, 12, 500, 0.0)) == pytest.approx(18 / math.sqrt(42))
    assert float(score_statistic(0, 0, 500, 0.0)) == 0


def test_the_ends_of_the_interval_are_the_losses_that_are_just_not_rejected() -> None:
    for worse, better, n in [(43, 23, 200), (3, 9, 50), (0, 4, 44)]:
        low, high = score_interval(worse, better, n)
        assert float(score_statistic(worse, better, n, low)) == pytest.approx(1.959964, abs=1e-5)
        assert float(score_statistic(worse, better, n, high)) == pytest.approx(-1.959964, abs=1e-5)
    low, high = score_interval(0, 0, 100)
    assert low == pytest.approx(-high)
    assert 0.03 < high < 0.04


@pytest.mark.parametrize(("worse", "better", "n", "tolerance"), [(5, 1, 20, 0.1), (3, 0, 12, 0.05), (6, 5, 15, 0.2)])
def test_the_exact_p_value_equals_a_sum_over_all_outcomes(worse: int, better: int, n: int, tolerance: float) -> None:
    observed = float(score_statistic(worse, better, n, tolerance))
    outcomes = [(b, c) for b in range(n + 1) for c in range(n + 1 - b)]
    extreme = [(b, c) for b, c in outcomes if float(score_statistic(b, c, n, tolerance)) >= observed - 1e-9]
    cells = [[b, c, n - b - c] for b, c in extreme]
    highest = 0.0
    interval = scipy.stats.binomtest(better, n).proportion_ci(1 - MISS, method="exact")
    for share in np.linspace(interval.low, min(interval.high, (1 - tolerance) / 2), 2000):
        chances = [share + tolerance, share, max(0.0, 1 - 2 * share - tolerance)]
        highest = max(highest, float(scipy.stats.multinomial.pmf(cells, n, chances).sum()))
    assert exact_p_value(worse, better, n, tolerance) == pytest.approx(highest + MISS, rel=2e-3)


def test_the_method_follows_from_items_and_tolerance() -> None:
    assert loss_test(changes(5, 0, 20), 0.0).method == "exact McNemar test"
    assert loss_test(changes(5, 0, 20), 0.02).method == "exact score test"
    assert loss_test(changes(50, 0, MAX_EXACT), 0.02).method == "score test"
    assert loss_test([-0.5, 0.25, 0.0], 0.02).method == "t test"


def test_the_exact_and_the_score_test_agree_on_many_items() -> None:
    exact = exact_p_value(120, 60, 2001, 0.02)
    assert loss_test(changes(120, 60, 2001 - 180), 0.02).p_value == pytest.approx(exact, rel=0.1)


def test_values_that_are_not_binary_are_tested_as_scipy_does() -> None:
    differences = np.random.default_rng(0).normal(-0.05, 0.3, 200).tolist()
    result = loss_test(differences, 0.02)
    reference = scipy.stats.ttest_1samp([-value for value in differences], 0.02, alternative="greater")
    assert result.p_value == pytest.approx(reference.pvalue)
    two_sided = scipy.stats.ttest_1samp([-value for value in differences], 0.0).confidence_interval(0.95)
    assert result.interval == pytest.approx(tuple(two_sided))


def test_items_that_all_lose_the_same_are_coins() -> None:
    result = loss_test([-0.5] * 4, 0.02)
    assert (result.loss, result.interval, result.p_value) == (0.5, (0.5, 0.5), 0.5**4)
    assert loss_test([-0.5], 0.0).interval is None
    assert loss_test([0.25] * 9, 0.0).p_value == 1.0


def test_nothing_is_lost_where_nothing_changed() -> None:
    for tolerance in (0.0, 0.02):
        result = loss_test(changes(0, 0, 100), tolerance)
        assert result.loss == 0
        assert result.p_value == pytest.approx(1.0, abs=1e-3)


def test_a_loss_needs_items_and_a_tolerance_below_one() -> None:
    with pytest.raises(ValueError, match="0 items"):
        loss_test([], 0.02)
    with pytest.raises(ValueError, match="tolerance 1"):
        loss_test([0.0], 1)


def test_a_loss_within_the_tolerance_is_seldom_rejected_and_a_larger_one_often() -> None:
    # A true loss of 1.9 points under a tolerance of 2, on as many items as MMLU has; then one of 3.5 points.
    generator = np.random.default_rng(1)
    rejected = {0.019: 0, 0.035: 0}
    for loss in rejected:
        for worse, better, _ in generator.multinomial(14042, [0.03 + loss, 0.03, 0.94 - loss], size=400):
            z = float(score_statistic(int(worse), int(better), 14042, 0.02))
            rejected[loss] += z > 1.6448536
    assert rejected[0.019] <= 400 * 0.05
    assert rejected[0.035] == 400


@pytest.mark.parametrize(("n", "loss", "share"), [(50, 0.02, 0.05), (50, 0.02, 0.005), (200, 0.05, 0.03)])
def test_the_exact_test_keeps_its_level(n: int, loss: float, share: float) -> None:
    counts = np.random.default_rng(2).multinomial(n, [share + loss, share, 1 - 2 * share - loss], size=4000)
    distinct, frequency = np.unique(counts[:, :2], axis=0, return_counts=True)
    near = float(score_statistic(distinct[:, 0], distinct[:, 1], n, loss).max())
    assert near > 1.6  # the simulation reaches the region of rejection
    num_rejected = 0
    for (worse, better), times in zip(distinct, frequency, strict=True):
        if float(score_statistic(int(worse), int(better), n, loss)) > 1:
            num_rejected += int(times) * (exact_p_value(int(worse), int(better), n, loss) <= 0.05)
    assert num_rejected / 4000 <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 4000)
