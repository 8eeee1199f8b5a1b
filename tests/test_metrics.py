"""A round's metrics, compared with enumeration and worked examples."""

import math
from itertools import combinations, pairwise
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampler.metrics import kl_bound, max_at_n, max_at_n_curve, round_metrics
from sampler.selection import best_of_n
from winnow.records import Reward


def reward(prompt_id: str, completion_id: int, value: float | None, **fields: object) -> Reward:
    row = {"prompt_id": prompt_id, "completion_id": completion_id, "reward": value, "num_tokens": 4, **fields}
    return Reward.model_validate(row)


def group(prompt_id: str, *values: float | None) -> list[Reward]:
    """Return the rewards of a prompt's completions; None is a completion that failed."""
    rewards = []
    for completion_id, value in enumerate(values):
        status = "too_long" if value is None else "ok"
        rewards.append(reward(prompt_id, completion_id, value, status=status))
    return rewards


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=7), st.data())
def test_max_at_n_is_the_mean_over_every_subset(values: list[float], data: st.DataObject) -> None:
    n = data.draw(st.integers(1, len(values)))
    assert max_at_n(values, n) == pytest.approx(fmean(max(subset) for subset in combinations(values, n)), abs=1e-9)


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=5), st.integers(0, 3), st.data())
def test_max_at_n_is_the_mean_over_every_subset_that_selects_a_completion(
    values: list[float], num_ineligible: int, data: st.DataObject
) -> None:
    n = data.draw(st.integers(1, len(values) + num_ineligible))
    selected = []
    for subset in combinations([*values, *[None] * num_ineligible], n):
        eligible = [value for value in subset if value is not None]
        if eligible:
            selected.append(max(eligible))
    assert max_at_n(values, n, num_ineligible) == pytest.approx(fmean(selected), abs=1e-9)


@given(st.lists(st.lists(st.none() | st.floats(-10, 10), min_size=4, max_size=4), min_size=1, max_size=6))
def test_the_curve_never_falls_and_ends_at_the_batch_reward(values: list[list[float | None]]) -> None:
    groups = {str(index): group(str(index), *prompt_values) for index, prompt_values in enumerate(values)}
    kept = {prompt_id: best_of_n(rewards) for prompt_id, rewards in groups.items()}
    metrics = round_metrics(groups, kept, num_completions=4, seed=0)
    curve = metrics["max_at_n"]
    if metrics["batch_reward"] is None:
        assert curve == []
        return
    assert len(curve) == 4
    assert curve[-1] == pytest.approx(metrics["batch_reward"])
    assert all(later >= earlier - 1e-9 for earlier, later in pairwise(curve))
    assert metrics["max_at_n_prompts"] == [sum(map(bool, kept.values()))] * 4


def test_max_at_1_is_the_expected_reward_of_the_random_control() -> None:
    groups = {"a": group("a", 1.0, 2.0, None), "b": group("b", 5.0, None, None)}
    kept = {prompt_id: best_of_n(rewards) for prompt_id, rewards in groups.items()}
    controls = [round_metrics(groups, kept, 3, seed)["random_control_reward"] for seed in range(400)]
    curve = round_metrics(groups, kept, 3, seed=0)["max_at_n"]
    assert curve[0] == (1.5 + 5.0) / 2
    assert fmean(controls) == pytest.approx(curve[0], abs=0.05)


def test_a_prompt_with_one_eligible_completion_does_not_cut_the_curve() -> None:
    groups = [group(str(number), 1.0, 2.0, 3.0) for number in range(9)]
    whole = max_at_n_curve(groups)
    assert whole == [(2.0, 9), (pytest.approx(8 / 3), 9), (3.0, 9)]
    with_poor_prompt = max_at_n_curve([*groups, group("poor", 2.0, None, None)])
    assert with_poor_prompt == [(2.0, 10), (pytest.approx((9 * 8 / 3 + 2) / 10), 10), (pytest.approx(2.9), 10)]


def test_each_n_is_from_the_prompts_that_have_as_many_completions() -> None:
    curve = max_at_n_curve([group("a", 1.0, 3.0), group("b", 4.0), group("c", None, None, None)])
    assert curve == [(3.0, 2), (3.0, 1)]


def test_kl_bound_of_one_completion_is_zero() -> None:
    assert kl_bound(1) == 0
    assert kl_bound(8) == pytest.approx(math.log(8) - 7 / 8)


def test_round_metrics_of_a_worked_example() -> None:
    groups = {
        "a": [reward("a", 0, 1.0), reward("a", 1, 3.0)],
        "b": [reward("b", 0, None, status="empty_completion", num_tokens=0), reward("b", 1, 2.0)],
        "c": [reward("c", 0, 9.0, is_truncated=True), reward("c", 1, None, status="too_long", num_tokens=0)],
    }
    kept = {prompt_id: best_of_n(rewards) for prompt_id, rewards in groups.items()}
    metrics = round_metrics(groups, kept, num_completions=2, seed=0)
    assert metrics["num_prompts"] == 3
    assert metrics["num_selected"] == 2
    assert metrics["num_scored"] == 4
    assert metrics["batch_reward"] == 2.5
    assert metrics["random_control_reward"] in (1.5, 2.5)
    assert metrics["gap"] == metrics["batch_reward"] - metrics["random_control_reward"]
    assert metrics["failures"] == {"empty_completion": 1, "too_long": 1}
    assert metrics["num_truncated"] == 1
    assert metrics["max_at_n"] == [pytest.approx(2.0), pytest.approx(2.5)]
    assert metrics["max_at_n_prompts"] == [2, 2]
    assert (metrics["selected_tokens"], metrics["completion_tokens"]) == (4, 4)


def test_round_metrics_compare_what_a_rule_keeps_with_a_control_of_equal_size() -> None:
    groups = {"a": [reward("a", 0, 1.0), reward("a", 1, 3.0)], "b": [reward("b", 0, 5.0), reward("b", 1, 7.0)]}
    metrics = round_metrics(groups, {"a": groups["a"], "b": []}, num_completions=2, seed=0)
    assert (metrics["num_selected"], metrics["batch_reward"], metrics["gap"]) == (2, 2.0, 0.0)


def test_round_metrics_of_no_prompts_are_none() -> None:
    metrics = round_metrics({}, {}, num_completions=2, seed=0)
    assert metrics["batch_reward"] is None
    assert metrics["gap"] is None
    assert metrics["max_at_n"] == []
