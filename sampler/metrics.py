"""Metrics of a round's rewards and of the probe's: batch reward, gap over the random control, max@n, KL bound, lengths.

    batch reward   mean reward of the selected completions; comparable between rounds only on one prompt set
    gap            batch reward - mean reward of a random control of equal size
    max@n          mean over prompts of E[reward that best of n selects] from n of the prompt's N completions
                   = sum_i C(N-m+i-1, n-1) x_(i) / (C(N, n) - C(N-m, n)),  x_(1) <= ... <= x_(m), the m eligible of N
    KL bound       KL(best-of-N || policy) <= log N - (N-1)/N        (Beirami et al., arXiv 2401.01879)

max@n is over all sets of n of a prompt's N completions. An ineligible completion (failed or unfinished) takes up one of
the n draws and is never selected, as in a round; a set without an eligible completion selects nothing and is left out.
So every prompt with an eligible completion is in the mean for every n up to N: the curve compares the same prompts and
never falls, max@1 is the mean of the eligible rewards, and max@N is the batch reward of best of N.

Worked example, N = 3: rewards 1, 3 and a failure. The sets of two are {1, 3}, {1, failed}, {3, failed}, so
max@2 = (3 + 1 + 3) / 3 = 2.33; max@1 = (1 + 3) / 2 = 2, and max@3 = 3.

The bound holds for the ideal best-of-N distribution. It is not the divergence of the policy that is trained on it.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from sampler.selection import is_eligible, random_control
from winnow.records import OK, ProbeReward, Prompt, Reward


def max_at_n(rewards: Sequence[float], n: int, num_ineligible: int = 0) -> float:
    """Return the expected maximum of `n` completions of a prompt, drawn without replacement, if one is eligible.

    `rewards` are those of the eligible completions, at least one; n is at most the number of all completions.

    >>> max_at_n([1.0, 2.0, 3.0], 2)
    2.6666666666666665
    >>> round(max_at_n([1.0, 3.0], 2, num_ineligible=1), 2)
    2.33
    """
    num_draws = math.comb(len(rewards) + num_ineligible, n) - math.comb(num_ineligible, n)
    # Ineligible completions rank below all others.
    ranked = enumerate(sorted(rewards), start=num_ineligible)
    return math.fsum(math.comb(rank, n - 1) / num_draws * reward for rank, reward in ranked)


def max_at_n_curve(groups: Iterable[Sequence[Reward]]) -> list[tuple[float, int]]:
    """Return max@1, max@2, ..., max@N averaged over prompts, each with the number of prompts that it is from.

    A prompt counts if it has an eligible completion, for every n up to the number of its completions.
    """
    counted = [(eligible_rewards(group), len(group)) for group in groups]
    counted = [(rewards, num_completions) for rewards, num_completions in counted if rewards]
    curve = []
    for n in range(1, max((num_completions for _, num_completions in counted), default=0) + 1):
        values: list[float] = []
        for rewards, num_completions in counted:
            if n <= num_completions:
                values.append(max_at_n(rewards, n, num_completions - len(rewards)))
        curve.append((fmean(values), len(values)))
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
    for prompt_id, prompt_rewards in rewards_by_prompt.items():
        prompt_kept = kept_by_prompt[prompt_id]
        rewards += prompt_rewards
        kept += prompt_kept
        control += random_control(prompt_rewards, len(prompt_kept), seed)
    batch_reward = mean_reward(kept)
    control_reward = mean_reward(control)
    gap = None
    if batch_reward is not None and control_reward is not None:
        gap = batch_reward - control_reward
    return {
        "num_prompts": len(rewards_by_prompt),
        "num_selected": len(kept),
        **reward_counts(rewards),
        "batch_reward": batch_reward,
        "random_control_reward": control_reward,
        "gap": gap,
        **max_at_n_metrics(rewards_by_prompt.values()),
        "kl_bound": kl_bound(num_completions),
        "selected_tokens": mean_tokens(kept),
    }


def probe_metrics(rewards_by_prompt: Mapping[str, Sequence[Reward]], num_completions: int) -> dict[str, Any]:
    """Compute the metrics of a round's policy on the probe; `num_completions` is N, a metric without data is None.

    `mean_reward` is max@1 and `best_of_n_reward` max@N: means over the prompts with an eligible completion.
    """
    rewards: list[Reward] = []
    for prompt_rewards in rewards_by_prompt.values():
        rewards += prompt_rewards
    curve = max_at_n_metrics(rewards_by_prompt.values())
    ends = curve["max_at_n"] or [None]
    return {
        "num_prompts": len(rewards_by_prompt),
        "num_completions": num_completions,
        **reward_counts(rewards),
        "mean_reward": ends[0],
        "best_of_n_reward": ends[-1],
        **curve,
    }


def probe_rewards(prompts: Sequence[Prompt], rewards_by_prompt: Mapping[str, Sequence[Reward]]) -> list[ProbeReward]:
    """Return a row for each prompt of the probe, in order: what tests between rounds are paired by."""
    rows = []
    for prompt in prompts:
        rewards = eligible_rewards(rewards_by_prompt[prompt.prompt_id])
        row = ProbeReward(
            prompt_id=prompt.prompt_id,
            source=prompt.source,
            num_eligible=len(rewards),
            mean_reward=fmean(rewards) if rewards else None,
            best_of_n_reward=max(rewards, default=None),
        )
        rows.append(row)
    return rows


def reward_counts(rewards: Sequence[Reward]) -> dict[str, Any]:
    """Count the completions that were scored, that are unfinished, and that failed; the length is of the scored."""
    scored = [reward for reward in rewards if reward.status == OK]
    failures = Counter(reward.status for reward in rewards if reward.status != OK)
    return {
        "num_scored": len(scored),
        "num_truncated": sum(reward.is_truncated for reward in rewards),
        "failures": dict(sorted(failures.items())),
        "completion_tokens": mean_tokens(scored),
    }


def max_at_n_metrics(groups: Iterable[Sequence[Reward]]) -> dict[str, Any]:
    """Return the values of max@1 to max@N, and the number of prompts that each is from."""
    curve = max_at_n_curve(groups)
    return {
        "max_at_n": [value for value, _ in curve],
        "max_at_n_prompts": [num_prompts for _, num_prompts in curve],
    }


def eligible_rewards(rewards: Sequence[Reward]) -> list[float]:
    """Return the rewards of the eligible completions of a prompt."""
    return [reward.reward for reward in rewards if is_eligible(reward) and reward.reward is not None]


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
