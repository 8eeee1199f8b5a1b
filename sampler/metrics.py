"""What a round's rewards say: batch reward, the gap over the random control, max@n, the KL bound, lengths.

    batch reward   mean reward of the selected completions; comparable between rounds on one prompt set only
    gap            batch reward - mean reward of a random control of equal size
    max@n          mean over prompts of E[max of n draws without replacement from the prompt's N rewards]
                   = sum_i C(i-1, n-1) / C(N, n) * x_(i),  x_(1) <= ... <= x_(N)
    KL bound       KL(best-of-N || policy) <= log N - (N-1)/N        (Beirami et al., arXiv 2401.01879)

The bound is of the ideal best-of-N distribution, and not the divergence of the policy that is trained on it.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from sampler.selection import best_of_n, is_eligible, random_control
from winnow.records import OK, Reward


def max_at_n(rewards: Sequence[float], n: int) -> float:
    """Expected maximum of `n` of the rewards, drawn without replacement.

    >>> max_at_n([1.0, 2.0, 3.0], 2)
    2.6666666666666665
    """
    ordered = sorted(rewards)
    ways = math.comb(len(ordered), n)
    return math.fsum(math.comb(i, n - 1) / ways * x for i, x in enumerate(ordered))


def max_at_n_curve(groups: Sequence[Sequence[float]]) -> list[float]:
    """max@1, max@2, ... averaged over prompts; as far as the smallest group goes."""
    shortest = min((len(group) for group in groups), default=0)
    return [fmean(max_at_n(group, n) for group in groups) for n in range(1, shortest + 1)]


def kl_bound(num_completions: int) -> float:
    """Upper bound of KL(best-of-N || policy) in nats.

    >>> round(kl_bound(8), 4)
    1.2044
    """
    return math.log(num_completions) - (num_completions - 1) / num_completions


def round_metrics(groups: Mapping[str, Sequence[Reward]], num_completions: int, seed: int) -> dict[str, Any]:
    """Everything above for one round; `groups` holds each prompt's rewards."""
    rewards = [reward for group in groups.values() for reward in group]
    selected = [best for group in groups.values() if (best := best_of_n(group))]
    control = [drawn for group in groups.values() if (drawn := random_control(group, seed))]
    scored = [[r.reward for r in group if is_eligible(r) and r.reward is not None] for group in groups.values()]
    batch_reward, control_reward = mean_reward(selected), mean_reward(control)
    return {
        "num_prompts": len(groups),
        "num_selected": len(selected),
        "num_scored": sum(reward.status == OK for reward in rewards),
        "num_truncated": sum(reward.is_truncated for reward in rewards),
        "failures": dict(sorted(Counter(reward.status for reward in rewards if reward.status != OK).items())),
        "batch_reward": batch_reward,
        "random_control_reward": control_reward,
        "gap": None if batch_reward is None or control_reward is None else batch_reward - control_reward,
        "max_at_n": max_at_n_curve([group for group in scored if group]),
        "kl_bound": kl_bound(num_completions),
        "selected_tokens": mean_tokens(selected),
        "completion_tokens": mean_tokens([reward for reward in rewards if reward.status == OK]),
    }


def mean_reward(rewards: Sequence[Reward]) -> float | None:
    """Mean reward; None of nothing."""
    values = [reward.reward for reward in rewards if reward.reward is not None]
    return fmean(values) if values else None


def mean_tokens(rewards: Sequence[Reward]) -> float | None:
    """Mean number of scored tokens; None of nothing."""
    return fmean(reward.num_tokens for reward in rewards) if rewards else None
