"""Selection: the completions of a prompt that are kept for training, and the random control that they must beat.

    best_of_n         argmax of reward over the prompt's eligible completions; a tie goes to the lower completion_id
    random_control    the same number of eligible completions, drawn without regard to their rewards

A completion is eligible if it was scored ("ok") and is finished: a completion that was cut at the length limit would
teach the policy to stop in the middle. A prompt without an eligible completion keeps nothing.

Worked example, N = 3: rewards (1.0, 3.0, 3.0) keep completion 1; (2.0, failed, 5.0 unfinished) keep completion 0.
"""

import random
from collections.abc import Callable, Sequence

from winnow.records import OK, Reward

SelectionRule = Callable[[Sequence[Reward]], list[Reward]]
"""A pure function from the rewards of one prompt's completions to the rewards of the kept completions."""


def is_eligible(reward: Reward) -> bool:
    """Return True if a completion may be selected."""
    return reward.status == OK and not reward.is_truncated and reward.reward is not None


def best_of_n(rewards: Sequence[Reward]) -> list[Reward]:
    """Keep the eligible completion of one prompt with the highest reward; nothing if none is eligible."""
    eligible = [reward for reward in rewards if is_eligible(reward)]
    if not eligible:
        return []
    return [max(eligible, key=lambda reward: (reward.reward, -reward.completion_id))]


def random_control(rewards: Sequence[Reward], num_kept: int, seed: int) -> list[Reward]:
    """Draw `num_kept` eligible completions of one prompt, or all if there are fewer; equal seeds give equal draws."""
    eligible = sorted(filter(is_eligible, rewards), key=lambda reward: reward.completion_id)
    if not eligible:
        return []
    rng = random.Random(f"{seed}/{eligible[0].prompt_id}")
    return rng.sample(eligible, min(num_kept, len(eligible)))


# The rules by their names in `SelectionConfig.rule`.
SELECTION_RULES: dict[str, SelectionRule] = {"best_of_n": best_of_n}
