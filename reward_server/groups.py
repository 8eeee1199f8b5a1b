"""A group: one prompt with its completions, the unit of scoring. Both sides of the wire use these types.

Group([{"role": "user", "content": "What is 2 + 3?"}], ["It is 5.", CompletionText("It is", is_finished=False)])
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from winnow.records import Message


@dataclass(frozen=True)
class CompletionText:
    """A completion as text, without EOS; `is_finished` when the policy ended it itself."""

    text: str
    is_finished: bool = True


Prompt = Sequence[Message] | Sequence[Mapping[str, str]] | Sequence[int]
CompletionInput = str | CompletionText | Sequence[int]


@dataclass(frozen=True)
class Group:
    """One prompt and its completions.

    The prompt is a conversation up to the assistant turn (dicts or `Message` objects), or token ids with BOS.
    A completion is a text, taken as finished; a `CompletionText`; or token ids as sampled, with EOS where it ended.
    """

    prompt: Prompt
    completions: Sequence[CompletionInput]


def is_token_ids(content: Prompt | CompletionInput) -> TypeGuard[Sequence[int]]:
    """Tell whether a prompt or a completion is a sequence of token ids, which may be empty."""
    if isinstance(content, str | CompletionText):
        return False
    return not content or isinstance(content[0], int)
