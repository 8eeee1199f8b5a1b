"""A group: one prompt with its completions, the unit of scoring. Both sides of the wire use these types.

Group([{"role": "user", "content": "What is 2 + 3?"}], ["It is 5.", CompletionText("It is", is_finished=False)])
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class CompletionText:
    """A completion as text, without EOS; `is_finished` when the policy ended it itself."""

    text: str
    is_finished: bool = True


Prompt = Sequence[Mapping[str, str]] | Sequence[int]
CompletionInput = str | CompletionText | Sequence[int]


@dataclass(frozen=True)
class Group:
    """One prompt (messages up to the assistant turn, or token ids with BOS) and its completions.

    A completion is a text, taken as finished; a `CompletionText`; or token ids as sampled, with EOS where it ended.
    """

    prompt: Prompt
    completions: Sequence[CompletionInput]
