"""The best-of-N audit: does the completion with the highest reward have the higher gold score? Pure.

Each prompt has N completions with a reward and a gold score: a judge's verdict, an exact match, another reward.

    gold@n   = E[gold of the highest reward among n draws without replacement from the prompt's N completions]
             = sum_i C(i-1, n-1) / C(N, n) * gold_(i),     ordered by reward: reward_(1) <= ... <= reward_(N)

This is the mean over all subsets of size n, computed exactly. Among equal rewards each is as likely to be taken, so
each has their mean gold. reward@n and oracle@n are the same with the reward, and with the gold score in both places:
the most that selection could gain. A gold@n that falls while reward@n rises is over-optimisation (Gao et al., arXiv
2210.10760).

Rewards compare within a prompt only. Therefore reward is shown as its excess over reward@1, the prompt's mean, and gold
against reward by rank within the prompt: Spearman's correlation of each prompt, and fifths of the ranks. Every value is
a mean over prompts, with its standard error over prompts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean

from eval.ranking import average_ranks, spearman
from eval.statistics.estimates import Estimate, estimate

NUM_BINS = 5
# Every n up to here is on the curve; above, powers of two and the largest N.
NUM_DENSE = 16


@dataclass(frozen=True)
class GoldGroup:
    """The rewards and gold scores of a prompt's completions, in the same order."""

    rewards: tuple[float, ...]
    golds: tuple[float, ...]


@dataclass(frozen=True)
class CurvePoint:
    """Gold score and reward at one n; `gold_gain` and `reward_gain` are the differences from n = 1, prompt by prompt.

    Only prompts with at least n completions count, so that `gold` of different n may be of different prompts; the gains
    are of the same.
    """

    n: int
    gold: Estimate
    gold_gain: Estimate
    reward_gain: Estimate
    oracle_gain: Estimate


@dataclass(frozen=True)
class RankBin:
    """The completions of a fifth of the reward's ranks within their prompts, the lowest first.

    The excesses are over the prompt's mean; `gold.n` is the number of prompts with a completion here.
    """

    number: int
    num_completions: int
    gold: Estimate
    gold_excess: Estimate
    reward_excess: Estimate


@dataclass(frozen=True)
class BestOfN:
    """The audit: the curve over n, gold by rank of the reward, and the mean rank correlation within prompts.

    `rank_correlation` is None if no prompt has one: a prompt has none if all its rewards or all its gold scores are
    equal, and `num_constant` counts those.
    """

    curve: tuple[CurvePoint, ...]
    bins: tuple[RankBin, ...]
    rank_correlation: Estimate | None
    num_constant: int


def best_of_n(groups: Sequence[GoldGroup]) -> BestOfN:
    """Compute the audit of prompts with at least one completion each. Raises ValueError without prompts."""
    if not groups:
        raise ValueError("a best-of-N audit needs at least one prompt")
    correlations: list[float] = []
    for group in groups:
        correlation = spearman(group.rewards, group.golds)
        if correlation is not None:
            correlations.append(correlation)
    return BestOfN(
        curve=tuple(_curve_point(groups, n) for n in sizes(max(len(group.rewards) for group in groups))),
        bins=tuple(_rank_bins(groups)),
        rank_correlation=estimate(correlations) if correlations else None,
        num_constant=len(groups) - len(correlations),
    )


def expected_gold(rewards: Sequence[float], golds: Sequence[float], n: int) -> float:
    """Return gold@n of one prompt; 1 <= n <= len(rewards).

    >>> expected_gold([0.1, 0.2, 0.3], [5.0, 1.0, 3.0], 2)  # best of {1, 2}, {1, 3}, {2, 3}: 1, 3, 3
    2.3333333333333335
    """
    golds_of_reward: dict[float, list[float]] = {}
    for reward, gold in zip(rewards, golds, strict=True):
        golds_of_reward.setdefault(reward, []).append(gold)
    ordered = sorted(rewards)
    weights = _weights(len(ordered), n)
    return math.fsum(
        weight * fmean(golds_of_reward[reward]) for weight, reward in zip(weights, ordered, strict=True) if weight
    )


def sizes(largest: int) -> list[int]:
    """Return the n of the curve.

    >>> sizes(40)[-5:]
    [14, 15, 16, 32, 40]
    """
    dense = list(range(1, min(largest, NUM_DENSE) + 1))
    powers = [2**k for k in range(largest.bit_length()) if NUM_DENSE < 2**k <= largest]
    return sorted({*dense, *powers, largest})


@lru_cache(maxsize=1024)
def _weights(num_completions: int, n: int) -> tuple[float, ...]:
    """Return the chance of each completion, by ascending reward, to be the best of n draws."""
    num_subsets = math.comb(num_completions, n)
    return tuple(math.comb(index, n - 1) / num_subsets for index in range(num_completions))


def _curve_point(groups: Sequence[GoldGroup], n: int) -> CurvePoint:
    golds: list[float] = []
    gold_gains: list[float] = []
    reward_gains: list[float] = []
    oracle_gains: list[float] = []
    for group in groups:
        if len(group.rewards) < n:
            continue
        mean_gold = fmean(group.golds)
        golds.append(expected_gold(group.rewards, group.golds, n))
        gold_gains.append(golds[-1] - mean_gold)
        reward_gains.append(expected_gold(group.rewards, group.rewards, n) - fmean(group.rewards))
        oracle_gains.append(expected_gold(group.golds, group.golds, n) - mean_gold)
    return CurvePoint(n, estimate(golds), estimate(gold_gains), estimate(reward_gains), estimate(oracle_gains))


def _rank_bins(groups: Sequence[GoldGroup]) -> list[RankBin]:
    """Return the bins that have a completion. A completion of average rank r among N is in bin (r - 1/2) / N."""
    golds: dict[int, list[float]] = {}
    gold_excesses: dict[int, list[float]] = {}
    reward_excesses: dict[int, list[float]] = {}
    num_completions = dict.fromkeys(range(NUM_BINS), 0)
    for group in groups:
        for number, members in _members_by_bin(group.rewards).items():
            bin_golds = [group.golds[index] for index in members]
            bin_rewards = [group.rewards[index] for index in members]
            num_completions[number] += len(members)
            golds.setdefault(number, []).append(fmean(bin_golds))
            gold_excesses.setdefault(number, []).append(fmean(bin_golds) - fmean(group.golds))
            reward_excesses.setdefault(number, []).append(fmean(bin_rewards) - fmean(group.rewards))
    bins: list[RankBin] = []
    for number in sorted(golds):
        bins.append(
            RankBin(
                number + 1,
                num_completions[number],
                estimate(golds[number]),
                estimate(gold_excesses[number]),
                estimate(reward_excesses[number]),
            )
        )
    return bins


def _members_by_bin(rewards: Sequence[float]) -> dict[int, list[int]]:
    members: dict[int, list[int]] = {}
    for index, rank in enumerate(average_ranks(rewards)):
        number = int(NUM_BINS * (rank - 0.5) / len(rewards))
        members.setdefault(number, []).append(index)
    return members
