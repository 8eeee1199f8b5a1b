"""Where an assistant turn stands in a rendered conversation.

    text    <|user|> \\n Hi \\n <|assistant|> \\n It is 5. <|end|> \\n <|user|> ...
                                                |        |       |
                                                start    |       end          the span that carries loss or score
                                                         text_end

A turn begins where its prompt ends. The first closing token after that ends it: the end of turn, another stop token, or
what the template writes after earlier turns (gpt-oss: <|end|> there and <|return|> after the last). A message cannot
hold one of these tokens, so the first is the turn's own.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class RenderedTurn:
    """An assistant turn in characters of a rendered text; `text_end` is where its closing token begins."""

    start: int
    text_end: int
    end: int

    def text(self, rendered: str) -> str:
        """Return the turn's text without its closing token, and without the white space that templates trim or add."""
        return rendered[self.start : self.text_end].strip()


def find_turn(rendered: str, start: int, content: str, closers: re.Pattern[str] | None) -> RenderedTurn:
    """Return the turn that begins at `start` and renders the message `content`.

    Without `closers`, as of a template that closes no turn, the turn ends with its content.
    """
    if closers is None:
        content_start = max(start, rendered.find(content.strip(), start))
        content_end = content_start + len(content.strip())
        return RenderedTurn(start, content_end, content_end)
    closing = closers.search(rendered, start)
    if closing is None:
        return RenderedTurn(start, len(rendered), len(rendered))
    return RenderedTurn(start, closing.start(), closing.end())
