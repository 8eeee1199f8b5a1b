"""Where an assistant turn stands in a rendered conversation.

    text    <|user|> \\n Hi \\n <|assistant|> \\n It is 5. <|end|> \\n <|user|> ...
                                                |        |       |
                                                start    |       end          the span that carries loss or score
                                                         text_end

A turn begins where its prompt ends. It is closed by the first control token after its text: that is the end of turn
where the template writes it after every turn, and <|end|> where a template (gpt-oss) writes <|end|> after earlier turns
and <|return|> after the last.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Closers:
    """The tokens that may close a turn, as patterns; `closes_turns` is False for a template that writes none."""

    control_tokens: re.Pattern[str]
    stop_tokens: re.Pattern[str]
    closes_turns: bool


@dataclass(frozen=True)
class RenderedTurn:
    """An assistant turn in characters of a rendered text; `text_end` is where its closing token begins."""

    start: int
    text_end: int
    end: int

    def text(self, rendered: str) -> str:
        """Return the turn's text without its closing token, and without the white space that templates trim or add."""
        return rendered[self.start : self.text_end].strip()


def find_turn(rendered: str, start: int, content: str, closers: Closers) -> RenderedTurn:
    """Return the turn that begins at `start` and renders the message `content`.

    Some templates write control tokens before the content (gpt-oss: its channel), others change it. So the closing
    token is the first control token after the content, or after `start` if the content does not stand in this turn.
    """
    content_end = start
    content_start = rendered.find(content.strip(), start)
    stop = closers.stop_tokens.search(rendered, start)
    if content_start >= 0 and (stop is None or content_start <= stop.start()):
        content_end = content_start + len(content.strip())
    if not closers.closes_turns:
        return RenderedTurn(start, content_end, content_end)
    closing = closers.control_tokens.search(rendered, content_end)
    if closing is None:
        return RenderedTurn(start, len(rendered), len(rendered))
    return RenderedTurn(start, closing.start(), closing.end())
