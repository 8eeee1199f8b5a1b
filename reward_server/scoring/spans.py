"""The tokens of a completion that are scored.

    completion_ids   the assistant turn after its header, through the EOS that closes it, if it has one
    scored_ids       completion_ids, with or without that EOS:

    eos_policy     closing EOS present         no closing EOS
    include        scored                      MISSING_EOS
    exclude        not scored                  nothing to leave out
    if_finished    scored if `is_finished`     nothing to leave out

EOS is any id at which the model stops, like the three of Llama 3; a text is rendered with the template's end of turn.
The prompt is never scored, its BOS and the assistant header included. A chat template closes every turn, also one that
the policy did not finish. With `if_finished`, an EOS that the policy did not emit has no part in the reward.

Token ids of a caller may hold one control token, the closing EOS. All others get status control_token, as in a text:

    answer EOS          scored
    answer EOS pad      control_token, after its end
    answer EOS more     control_token, before its end
    pad                 control_token, before its end
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from winnow.completion_ids import control_token_fault
from winnow.reward_options import EosPolicy


class UnscorableError(Exception):
    """A completion cannot be scored; `status` is a name of `winnow.v1.Status` in lower case, without its prefix."""

    def __init__(self, status: str, error: str) -> None:
        super().__init__(error)
        self.status = status


@dataclass(frozen=True)
class RenderedCompletion:
    """A prompt and a completion as one model reads them: the completion's scored ids follow the prompt's ids.

    `is_eos_scored` is True if the last scored id is the EOS that closes the turn. `is_truncated` is True if the policy
    did not end the turn itself, or if a recipe removed tokens.
    """

    prompt_ids: list[int]
    scored_ids: list[int]
    is_eos_scored: bool
    is_truncated: bool

    @property
    def num_tokens(self) -> int:
        """Number of tokens that the model reads."""
        return len(self.prompt_ids) + len(self.scored_ids)


def select_scored_ids(
    completion_ids: Sequence[int], stop_ids: Collection[int], *, is_finished: bool, eos_policy: EosPolicy
) -> tuple[list[int], bool]:
    """Return the scored ids of a completion, and whether its closing EOS, one of `stop_ids`, is the last of them.

    Raises UnscorableError: empty_completion, missing_eos.

    >>> select_scored_ids([5, 6, 2], stop_ids={2}, is_finished=False, eos_policy="if_finished")
    ([5, 6], False)
    """
    scored_ids = list(completion_ids)
    closing_ids = [token_id for token_id in scored_ids[-1:] if token_id in stop_ids]
    if closing_ids:
        scored_ids.pop()
    if not scored_ids:
        raise UnscorableError("empty_completion", "the completion is empty; there is nothing to score")
    if eos_policy == "include" and not closing_ids:
        ids = " or ".join(map(str, sorted(stop_ids)))
        raise UnscorableError(
            "missing_eos",
            f"eos_policy include, but the completion does not end in EOS (id {ids}); end it in EOS, or take "
            "if_finished or exclude",
        )
    is_eos_scored = bool(closing_ids) and (eos_policy == "include" or (eos_policy == "if_finished" and is_finished))
    if is_eos_scored:
        scored_ids += closing_ids
    return scored_ids, is_eos_scored


def refuse_control_tokens(
    completion_ids: Sequence[int], stop_ids: Collection[int], control_tokens: Mapping[int, str]
) -> None:
    """Raise UnscorableError (control_token) for a control token in a caller's ids, except an EOS at their end.

    `stop_ids` may close a turn, and `control_tokens` holds the tokenizer's control tokens by id.
    """
    fault = control_token_fault(completion_ids, stop_ids, control_tokens)
    if fault:
        raise UnscorableError("control_token", fault)
