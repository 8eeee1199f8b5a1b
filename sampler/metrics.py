"""Metrics of a round's rewards: batch reward, the gap over the random control, max@n, the KL bound, lengths.

    batch reward   mean reward of the selected completions; comparable between rounds only on one prompt set
    gap            batch reward - mean reward of a random control of equal size
    max@n          mean over prompts of E[max of n draws without replacement from the prompt's N rewards]
                   = sum_i C(i-1, n-1) / C(N, n) * x_(i),  x_(1) <= ... <= x_(N)
    KL bound       KL(best-of-N || policy) <= log N - (N-1)/N        (Beirami et al., arXiv 2401.01879)

The bound holds for the ideal best-of-N distribution. It is not the divergence of the policy that is trained on it.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from sampler.selection import is_eligible, random_control
from winnow.records import OK, Reward


def max_at_n(rewards: Sequence[float], n: int) -> float:
    """Return the expected maximum of `n` of the rewards, drawn without replacement; 1 <= n <= len(rewards).

    >>> max_at_n([1.0, 2.0, 3.0], 2)
    2.6666666666666665
    """
    ordered = sorted(rewards)
    num_draws = math.comb(len(ordered), n)
    return math.fsum(math.comb(i, n - 1) / num_draws * x for i, x in enumerate(ordered))


def max_at_n_curve(rewards_of_prompts: Sequence[Sequence[float]]) -> list[float]:
    """Return max@1, max@2, ... averaged over prompts, up to the smallest number of rewards of a prompt."""
    smallest = min(map(len, rewards_of_prompts), default=0)
    curve = []
    for n in range(1, smallest + 1):
        curve.append(fmean(max_at_n(rewards, n) for rewards in rewards_of_prompts))
    return curve


def kl_bound(num_completions: int) -> float:
    """Return the upper bound of KL(best-of-N || policy) in nats.

    >>> round(kl_bound(8), 4)
    1.2044
    """
    return math.log(num_completions) - (num_completions - 1) / num_completions


def round_metrics(
    rewards_by_prompt: Mapping[str, Sequence[Reward]],
    kept_by_prompt: Mapping[str, Sequence[Reward]],
    num_completions: int,
    seed: int,
) -> dict[str, Any]:
    """Compute all metrics of a round; both mappings have the same prompt ids.

    `kept_by_prompt` holds the rewards of the completions that were kept, `num_completions` is N, and `seed` draws the
    random control. A metric without data is None. Lengths are means in tokens.
    """
    rewards: list[Reward] = []
    kept: list[Reward] = []
    control: list[Reward] = []
    eligible_rewards: list[list[float]] = []
    for prompt_id, prompt_rewards in rewards_by_prompt.items():
        prompt_kept = kept_by_prompt[prompt_id]
        rewards += prompt_rewards
        kept += prompt_kept
        control += random_control(prompt_rewards, len(prompt_kept), seed)
        values = [reward.reward for reward in prompt_rewards if is_eligible(reward) and reward.reward is not None]
        if values:
            eligible_rewards.append(values)
    scored = [reward for reward in rewards if reward.status == OK]
    failures = Counter(reward.status for reward in rewards if reward.status != OK)
    batch_reward = mean_reward(kept)
    control_reward = mean_reward(control)
    gap = None
    if batch_reward is not None and control_reward is not None:
        gap = batch_reward - control_reward
    return {
        "num_prompts": len(rewards_by_prompt),
        "num_selected": len(kept),
        "num_scored": len(scored),
        "num_truncated": sum(reward.is_truncated for reward in rewards),
        "failures": dict(sorted(failures.items())),
        "batch_reward": batch_reward,
        "random_control_reward": control_reward,
        "gap": gap,
        "max_at_n": max_at_n_curve(eligible_rewards),
        "kl_bound": kl_bound(num_completions),
        "selected_tokens": mean_tokens(kept),
        "completion_tokens": mean_tokens(scored),
    }


def mean_reward(rewards: Sequence[Reward]) -> float | None:
    """Return the mean reward of the scored completions; None if there are none."""
    values = [reward.reward for reward in rewards if reward.reward is not None]
    if not values:
        return None
    return fmean(values)


def mean_tokens(rewards: Sequence[Reward]) -> float | None:
    """Return the mean number of scored tokens; None if there are no rewards."""
    if not rewards:
        return None
    return fmean(reward.num_tokens for reward in rewards)
