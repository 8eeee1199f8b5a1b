"""A group: one prompt with its completions, the unit of scoring. Both sides of the wire use these types.

Group([{"role": "user", "content": "What is 2 + 3?"}], ["It is 5.", CompletionText("It is", is_finished=False)])
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from winnow.records import Message


@dataclass(frozen=True)
class CompletionText:
    """A completion as text, without EOS.

    `is_finished` is True if the policy ended the turn itself, False if a limit of length cut it.
    """

    text: str
    is_finished: bool = True


Prompt = Sequence[Message] | Sequence[Mapping[str, str]] | Sequence[int]
"""A conversation up to the assistant turn, or its token ids with BOS."""
CompletionInput = str | CompletionText | Sequence[int]
"""A finished text, a CompletionText, or token ids as sampled."""


@dataclass(frozen=True)
class Group:
    """One prompt and its completions.

    The prompt is a conversation up to the assistant turn, as {"role", "content"} dicts or `Message` objects; or token
    ids with BOS. A completion is a text, which counts as finished; a `CompletionText`; or token ids as sampled, which
    end in EOS if the policy ended the turn itself.
    """

    prompt: Prompt
    completions: Sequence[CompletionInput]


def is_token_ids(content: Prompt | CompletionInput) -> TypeGuard[Sequence[int]]:
    """Tell whether a prompt or a completion is a sequence of token ids, which may be empty."""
    if isinstance(content, str | CompletionText):
        return False
    return not content or isinstance(content[0], int)
