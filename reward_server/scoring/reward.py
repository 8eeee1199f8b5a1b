"""Per-token log-probabilities of one completion under two models -> its reward.

    instruct_logp = sum_t log p_instruct(y_t | x, y_<t)
    base_logp     = sum_t log p_base(y_t | x, y_<t)
    log_ratio     = instruct_logp - base_logp
    reward        = beta * log_ratio                    normalization sum
                  = beta * log_ratio / num_tokens       normalization mean

Reference-free, instruct_logp stands in for log_ratio. t runs over the scored tokens (`reward_server.scoring.spans`).

`sum` with beta is DPO's implicit reward (Rafailov et al., arXiv 2305.18290, eq. 5), but for the term beta * log Z(x)
that depends on the prompt alone; with beta 1 it is what RewardBench scores (Lambert et al., arXiv 2403.13787).

What follows from it:
- Rewards compare between completions of one prompt only: Z(x) is unknown. A mean over prompts compares two policies
  only on the same prompts.
- The sum grows with length: in a group whose completions differ much in length it also ranks by length. The mean does
  not, and ranks differently; name the one that was used.
- It is a small difference of large numbers: log-probabilities come in single precision, their sums are exactly rounded
  doubles.
- With different tokenizers each model sums over tokens of its own; `mean` divides by the instruct model's.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Normalization = Literal["sum", "mean"]


@dataclass(frozen=True)
class LogRatio:
    """The reward of one completion and what it was made of; natural logarithms, sums over `num_tokens` tokens."""

    reward: float
    instruct_logp: float
    base_logp: float | None
    log_ratio: float | None
    num_tokens: int

    @property
    def is_finite(self) -> bool:
        """Whether every number is finite."""
        return all(math.isfinite(x) for x in (self.reward, self.instruct_logp, self.base_logp or 0.0))


def log_ratio_reward(
    instruct_logprobs: Sequence[float],
    base_logprobs: Sequence[float] | None,
    *,
    normalization: Normalization = "sum",
    beta: float = 1.0,
) -> LogRatio:
    """The reward of one completion from its tokens' log-probabilities; without the base model's it is reference-free.

    >>> log_ratio_reward([-1.0, -2.0], [-1.5, -3.0]).reward
    1.5
    """
    instruct_logp = _sum(instruct_logprobs)
    base_logp = None if base_logprobs is None else _sum(base_logprobs)
    log_ratio = None if base_logp is None else instruct_logp - base_logp
    signal = instruct_logp if log_ratio is None else log_ratio
    num_tokens = len(instruct_logprobs)
    reward = beta * signal / (num_tokens if normalization == "mean" else 1)
    return LogRatio(reward, instruct_logp, base_logp, log_ratio, num_tokens)


def _sum(logprobs: Sequence[float]) -> float:
    """The exactly rounded sum; not a number where that of plain addition would not be finite."""
    values = [float(logprob) for logprob in logprobs]
    return math.fsum(values) if all(map(math.isfinite, values)) else math.nan
