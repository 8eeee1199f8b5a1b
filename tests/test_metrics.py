"""A round's metrics, compared with enumeration and worked examples."""

import math
from itertools import combinations
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


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=7), st.data())
def test_max_at_n_is_the_mean_over_every_subset(values: list[float], data: st.DataObject) -> None:
    n = data.draw(st.integers(1, len(values)))
    assert max_at_n(values, n) == pytest.approx(fmean(max(subset) for subset in combinations(values, n)), abs=1e-9)


def test_max_at_n_curve_runs_from_the_mean_to_the_batch_reward() -> None:
    curve = max_at_n_curve([[1.0, 2.0, 3.0], [0.0, 0.0, 6.0]])
    assert curve == pytest.approx([2.0, (8 / 3 + 4.0) / 2, 4.5])


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
    assert metrics["max_at_n"] == [pytest.approx(2.0)]
    assert (metrics["selected_tokens"], metrics["completion_tokens"]) == (4, 4)


def test_round_metrics_compare_what_a_rule_keeps_with_a_control_of_equal_size() -> None:
    groups = {"a": [reward("a", 0, 1.0), reward("a", 1, 3.0)], "b": [reward("b", 0, 5.0), reward("b", 1, 7.0)]}
    metrics = round_metrics(groups, {"a": groups["a"], "b": []}, num_completions=2, seed=0)
    assert (metrics["num_selected"], metrics["batch_reward"], metrics["gap"]) == (2, 2.0, 0.0)


def test_round_metrics_of_no_prompts_are_none() -> None:
    metrics = round_metrics({}, {}, num_completions=2, seed=0)
    assert metrics["batch_reward"] is None
    assert metrics["gap"] is None
