"""Which completions of a prompt are kept: best of N, and the random control of equal size that it must beat.

    best-of-N      argmax of reward over the prompt's eligible completions; a tie goes to the lower completion_id
    random control one eligible completion drawn without looking at its reward

Eligible: scored ("ok") and finished. A completion that ran into the length limit would be trained with an end it never
had. A prompt without an eligible completion gives nothing, and is counted.

Worked example, N = 3: rewards (1.0, 3.0, 3.0) keep completion 1; (2.0, failed, 5.0 unfinished) keep completion 0.
"""

import random
from collections.abc import Sequence

from winnow.records import OK, Reward


def is_eligible(reward: Reward) -> bool:
    """Whether a completion may be selected."""
    return reward.status == OK and not reward.is_truncated and reward.reward is not None


def best_of_n(rewards: Sequence[Reward]) -> Reward | None:
    """The completion of one prompt with the highest reward; None when none is eligible."""
    eligible = [reward for reward in rewards if is_eligible(reward)]
    return max(eligible, key=lambda reward: (reward.reward, -reward.completion_id), default=None)


def random_control(rewards: Sequence[Reward], seed: int) -> Reward | None:
    """A completion of one prompt drawn at random among the eligible ones; the same for equal seed and prompt."""
    eligible = sorted(filter(is_eligible, rewards), key=lambda reward: reward.completion_id)
    if not eligible:
        return None
    return random.Random(f"{seed}/{eligible[0].prompt_id}").choice(eligible)
