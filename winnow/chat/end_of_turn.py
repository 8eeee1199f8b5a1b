"""Which token closes an assistant turn, and at which token ids sampling stops.

    end of turn   the control token that the template writes after an assistant turn
    stop ids      the end of turn, the tokenizer's EOS, and the ids of generation_config.json (Llama 3 lists three)

The end of turn must be a stop id: otherwise a policy never learns to write a token at which its sampling stops, and no
completion of it is finished. Three kinds of templates:

    template                        after the last turn     before the next turn    end of turn
    most                            <|end|>                 <|end|>                 <|end|>
    gpt-oss                         <|return|>              <|end|>                 <|return|>
    GLM-4                           nothing                 <|user|>                <|user|>, appended to the last turn
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from winnow.errors import ChatError
from winnow.records import Message

QUESTION = Message(role="user", content="Question 17")
ANSWER = Message(role="assistant", content="Answer 17")
NEXT_QUESTION = Message(role="user", content="Question 18")
SYSTEM = Message(role="system", content="System message 17")


@dataclass(frozen=True)
class WrittenTokens:
    """The control tokens that a template writes after an assistant turn; None where it writes none."""

    after_last_turn: str | None
    before_next_turn: str | None

    def end_of_turn(self, stop_tokens: set[str]) -> str | None:
        """Return the written token at which sampling stops; None without one.

        >>> WrittenTokens("<|end|>", "<|end|>").end_of_turn({"<|end|>", "</s>"})
        '<|end|>'
        >>> WrittenTokens(None, "<|user|>").end_of_turn({"<|user|>"})
        '<|user|>'
        """
        token = self.after_last_turn or self.before_next_turn
        if token in stop_tokens:
            return token
        return None


def written_tokens(render: Callable[[Sequence[Message]], str], control_tokens: re.Pattern[str]) -> WrittenTokens:
    """Return what a template writes after an assistant turn. Raises ChatError if it refuses one turn."""
    after_last_turn = _token_after_answer(render([QUESTION, ANSWER]), control_tokens)
    try:
        longer = render([QUESTION, ANSWER, NEXT_QUESTION])
    except ChatError:  # the template takes one turn only
        return WrittenTokens(after_last_turn, None)
    return WrittenTokens(after_last_turn, _token_after_answer(longer, control_tokens))


def _token_after_answer(text: str, control_tokens: re.Pattern[str]) -> str | None:
    match = control_tokens.search(text, text.find(ANSWER.content))
    if match is None:
        return None
    return match[0]
