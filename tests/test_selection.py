"""Selection: best of N, its ties, the random control, and the registry of rules."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampler.selection import SELECTION_RULES, best_of_n, is_eligible, random_control
from sampler.stages import select, training_row
from tests.completions import stored_completion
from winnow.records import Message, Reward, make_prompt
from winnow.rows import read_jsonl_files, write_jsonl, write_parquet
from winnow.run_config import RunConfig, SelectionConfig
from winnow.rundir import Run


def reward(completion_id: int, value: float | None, *, status: str = "ok", is_truncated: bool = False) -> Reward:
    return Reward(
        prompt_id="p",
        completion_id=completion_id,
        reward=value,
        status=status,
        is_truncated=is_truncated,
        num_tokens=3,
    )


def ids(rewards: list[Reward]) -> list[int]:
    return [row.completion_id for row in rewards]


def test_selection_config_offers_exactly_the_rules_of_the_registry() -> None:
    assert set(get_args(SelectionConfig.model_fields["rule"].annotation)) == set(SELECTION_RULES)
    assert SELECTION_RULES["best_of_n"] is best_of_n


def lowest_two(rewards: Sequence[Reward]) -> list[Reward]:
    return sorted(filter(is_eligible, rewards), key=lambda row: row.reward or 0.0)[:2]


def test_select_keeps_the_completions_that_the_configured_rule_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SELECTION_RULES, "best_of_n", lowest_two)
    config = RunConfig.model_validate({"name": "tiny", "policy": {"model": "student"}, "sampling": {"shard_size": 4}})
    run = Run(tmp_path, config)
    prompt = make_prompt("sums", (Message(role="user", content="2 + 3?"),))
    fields = {"prompt_id": prompt.prompt_id, "num_tokens": 1}
    completions = [stored_completion(prompt.prompt_id, n, f"text {n}") for n in range(3)]
    rewards = [Reward(completion_id=n, reward=value, **fields) for n, value in enumerate([3.0, 1.0, 2.0])]
    write_jsonl(run.prompts_path(1), [prompt])
    write_parquet(run.completions_dir(1) / "0000.parquet", completions)
    write_parquet(run.rewards_dir(1) / "0000.parquet", rewards)
    select(run, 1)
    rows = read_jsonl_files([run.selected_path(1)])
    assert [row["messages"][-1]["content"] for row in rows] == ["text 1", "text 2"]
    metrics = json.loads(run.metrics_path(1).read_text())
    assert (metrics["num_selected"], metrics["batch_reward"]) == (2, 1.5)


def test_only_a_completion_whose_text_is_not_exact_keeps_its_ids_in_the_training_row() -> None:
    prompt = make_prompt("sums", (Message(role="user", content="2 + 3?"),))
    exact = stored_completion(prompt.prompt_id, 0, "5")
    inexact = exact.model_copy(update={"has_exact_text": False, "text": "5\ufffd", "token_ids": (8, 9, 1)})
    common = {"prompt_id": prompt.prompt_id, "completion_id": 0, "source": "sums", "round": 2, "reward": 1.5}
    assert training_row(prompt, reward(0, 1.5), exact, 2).metadata == common
    row = training_row(prompt, reward(0, 1.5), inexact, 2)
    assert row.messages[-1] == Message(role="assistant", content="5\ufffd")
    assert row.metadata == {**common, "completion_ids": [8, 9, 1], "tokenizer_hash": "made up"}


def test_best_of_n_keeps_the_highest_reward() -> None:
    assert ids(best_of_n([reward(0, 1.0), reward(1, 3.0), reward(2, 2.0)])) == [1]


def test_best_of_n_gives_a_tie_to_the_lower_completion_id_in_any_order() -> None:
    tied = [reward(0, 1.0), reward(1, 3.0), reward(2, 3.0)]
    assert ids(best_of_n(tied)) == [1]
    assert ids(best_of_n(tied[::-1])) == [1]


def test_best_of_n_never_keeps_failed_or_unfinished_completions() -> None:
    rewards = [reward(0, 2.0), reward(1, None, status="too_long"), reward(2, 5.0, is_truncated=True)]
    assert ids(best_of_n(rewards)) == [0]


def test_a_prompt_without_an_eligible_completion_keeps_nothing() -> None:
    rewards = [reward(0, None, status="empty_completion"), reward(1, 4.0, is_truncated=True)]
    assert best_of_n(rewards) == []
    assert random_control(rewards, 1, seed=0) == []
    assert best_of_n([]) == []


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=12), st.integers(0, 2**31))
def test_random_control_draws_an_eligible_completion_no_better_than_best_of_n(values: list[float], seed: int) -> None:
    rewards = [reward(index, value) for index, value in enumerate(values)]
    [best] = best_of_n(rewards)
    [control] = random_control(rewards, 1, seed)
    assert control in rewards
    assert best.reward == max(values)


def test_random_control_does_not_depend_on_rewards() -> None:
    low = [reward(index, 0.0) for index in range(4)]
    high = [reward(index, float(index)) for index in range(4)]
    drawn = [ids(random_control(high, 1, seed))[0] for seed in range(400)]
    assert drawn == [ids(random_control(low, 1, seed))[0] for seed in range(400)]
    assert all(60 < count < 140 for count in Counter(drawn).values())


def test_random_control_draws_as_many_as_are_kept_and_none_twice() -> None:
    rewards = [reward(index, float(index)) for index in range(4)]
    assert len(set(ids(random_control(rewards, 3, seed=0)))) == 3
    assert sorted(ids(random_control(rewards, 9, seed=0))) == [0, 1, 2, 3]
    assert random_control(rewards, 0, seed=0) == []


def test_random_control_of_a_seed_stays_the_same() -> None:
    """Draws of this version; other draws would change the gap in the metrics of runs that are resumed."""
    rewards = [reward(index, float(index)) for index in range(8)]
    assert [ids(random_control(rewards, 1, seed))[0] for seed in range(10)] == [6, 1, 4, 0, 0, 7, 4, 5, 6, 4]
