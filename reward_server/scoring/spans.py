"""Which tokens of a completion are scored.

    completion_ids   the assistant turn after its header, through the EOS that closes it, if it has one
    scored           completion_ids, with or without that EOS:

    eos_policy     closing EOS there           no closing EOS
    include        scored                      MISSING_EOS
    exclude        not scored                  nothing to leave out
    if_finished    scored if `is_finished`     nothing to leave out

The prompt is never scored, its BOS and the assistant header included. A chat template closes every turn, also one that
the policy did not finish: `if_finished` keeps the reward from paying for an EOS that was never emitted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

EosPolicy = Literal["include", "exclude", "if_finished"]


class UnscorableError(Exception):
    """A completion cannot be scored; `status` is a name of `winnow.v1.Status` in lower case, without its prefix."""

    def __init__(self, status: str, error: str) -> None:
        super().__init__(error)
        self.status = status


@dataclass(frozen=True)
class ScoredSpan:
    """The scored token ids, and whether the closing EOS is their last."""

    token_ids: list[int]
    is_eos_scored: bool


def scored_span(
    completion_ids: Sequence[int], eos_token_id: int, *, is_finished: bool, eos_policy: EosPolicy
) -> ScoredSpan:
    """The scored tokens of a completion. Raises UnscorableError: empty_completion, missing_eos.

    >>> scored_span([5, 6, 2], eos_token_id=2, is_finished=False, eos_policy="if_finished")
    ScoredSpan(token_ids=[5, 6], is_eos_scored=False)
    """
    has_eos = list(completion_ids[-1:]) == [eos_token_id]
    content = list(completion_ids[:-1] if has_eos else completion_ids)
    if not content:
        raise UnscorableError("empty_completion", "the completion is empty; there is nothing to score")
    if eos_policy == "include" and not has_eos:
        raise UnscorableError(
            "missing_eos",
            f"eos_policy include, but the completion does not end in EOS (id {eos_token_id}); "
            "end it in EOS, or take if_finished or exclude",
        )
    is_eos_scored = has_eos and (eos_policy == "include" or (eos_policy == "if_finished" and is_finished))
    return ScoredSpan([*content, eos_token_id] if is_eos_scored else content, is_eos_scored)
