"""Per-token log-probabilities of one completion under two models -> its reward.

    instruct_logp = sum_t log p_instruct(y_t | x, y_<t)
    base_logp     = sum_t log p_base(y_t | x, y_<t)
    log_ratio     = instruct_logp - base_logp
    reward        = beta * log_ratio                    normalization sum
                  = beta * log_ratio / num_tokens       normalization mean

In a reference-free reward, instruct_logp replaces log_ratio. t runs over the scored tokens (scoring/spans.py).

Except for the term beta * log Z(x), which depends on the prompt alone, `sum` is DPO's implicit reward (Rafailov et al.,
arXiv 2305.18290, eq. 5). With beta 1 it is the score of RewardBench (Lambert et al., arXiv 2403.13787).

Consequences:
- Only rewards of completions of the same prompt are comparable, because Z(x) is unknown. A mean over prompts compares
  two policies only on the same prompts.
- The sum grows with length. If the completions of a group differ much in length, the sum also ranks by length. The mean
  does not, and ranks differently; report which one was used.
- The reward is a small difference of large numbers. Log-probabilities have single precision; their sums are exactly
  rounded doubles.
- With different tokenizers, each model sums over its own tokens; `mean` divides by the instruct model's number.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from reward_server.scoring.spans import RenderedCompletion
from winnow.records import OK
from winnow.reward_options import Normalization


@dataclass(frozen=True)
class CompletionResult:
    """The result for one completion: if `status` is not "ok", `error` gives the reason and there are no numbers.

    Natural logarithms: logps are sums over `num_tokens` tokens, logprobs are per token. Without the base model
    (reference-free), `base_logp`, `log_ratio` and `base_logprobs` are None.
    """

    status: str = OK
    error: str = ""
    reward: float | None = None
    instruct_logp: float | None = None
    base_logp: float | None = None
    log_ratio: float | None = None
    num_tokens: int = 0
    rendered: RenderedCompletion | None = None
    instruct_logprobs: Sequence[float] = ()
    base_logprobs: Sequence[float] | None = None


def log_ratio_reward(
    instruct_logprobs: Sequence[float],
    base_logprobs: Sequence[float] | None,
    *,
    normalization: Normalization = "sum",
    beta: float = 1.0,
    rendered: RenderedCompletion | None = None,
) -> CompletionResult:
    """Compute the reward of one completion from the log-probabilities of its tokens: one number per token.

    Reference-free if `base_logprobs` is None. The status is "non_finite" if a number is not finite. The result keeps
    `rendered`, the completion's tokens.

    >>> log_ratio_reward([-1.0, -2.0], [-1.5, -3.0]).reward
    1.5
    """
    instruct_logp = _exact_sum(instruct_logprobs)
    base_logp = None
    log_ratio = None
    signal = instruct_logp
    if base_logprobs is not None:
        base_logp = _exact_sum(base_logprobs)
        log_ratio = instruct_logp - base_logp
        signal = log_ratio
    num_tokens = len(instruct_logprobs)
    reward = beta * signal
    if normalization == "mean":
        reward /= num_tokens
    if not (math.isfinite(reward) and math.isfinite(instruct_logp)):
        return CompletionResult(
            "non_finite", "a model gave a log-probability that is not finite; check weights and dtype"
        )
    return CompletionResult(
        reward=reward,
        instruct_logp=instruct_logp,
        base_logp=base_logp,
        log_ratio=log_ratio,
        num_tokens=num_tokens,
        rendered=rendered,
        instruct_logprobs=instruct_logprobs,
        base_logprobs=base_logprobs,
    )


def _exact_sum(logprobs: Sequence[float]) -> float:
    """Return the exactly rounded sum; NaN if any value is not finite."""
    if not all(map(math.isfinite, logprobs)):
        return math.nan
    return math.fsum(logprobs)
