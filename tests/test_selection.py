"""Best of N, its ties, and the random control."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from sampler.selection import best_of_n, random_control
from winnow.records import Reward


def reward(completion_id: int, value: float | None, *, status: str = "ok", truncated: bool = False) -> Reward:
    return Reward(
        prompt_id="p", completion_id=completion_id, reward=value, status=status, is_truncated=truncated, num_tokens=3
    )


def test_the_highest_reward_wins() -> None:
    best = best_of_n([reward(0, 1.0), reward(1, 3.0), reward(2, 2.0)])
    assert best is not None
    assert best.completion_id == 1


def test_a_tie_goes_to_the_lower_completion_id_in_any_order() -> None:
    tied = [reward(0, 1.0), reward(1, 3.0), reward(2, 3.0)]
    assert [best_of_n(rows).completion_id for rows in (tied, tied[::-1])] == [1, 1]  # type: ignore[union-attr]


def test_failed_and_unfinished_completions_are_never_selected() -> None:
    best = best_of_n([reward(0, 2.0), reward(1, None, status="too_long"), reward(2, 5.0, truncated=True)])
    assert best is not None
    assert best.completion_id == 0


def test_a_prompt_without_an_eligible_completion_gives_nothing() -> None:
    rows = [reward(0, None, status="empty_completion"), reward(1, 4.0, truncated=True)]
    assert best_of_n(rows) is None
    assert random_control(rows, seed=0) is None
    assert best_of_n([]) is None


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=12), st.integers(0, 2**31))
def test_the_control_is_an_eligible_completion_that_the_winner_never_loses_to(values: list[float], seed: int) -> None:
    rows = [reward(index, value) for index, value in enumerate(values)]
    best, control = best_of_n(rows), random_control(rows, seed)
    assert best is not None
    assert control in rows
    assert best.reward == max(values)


def test_the_control_does_not_look_at_rewards() -> None:
    low = [reward(index, 0.0) for index in range(4)]
    high = [reward(index, float(index)) for index in range(4)]
    drawn = [random_control(high, seed).completion_id for seed in range(400)]  # type: ignore[union-attr]
    assert drawn == [random_control(low, seed).completion_id for seed in range(400)]  # type: ignore[union-attr]
    assert all(60 < count < 140 for count in Counter(drawn).values())
