"""The tokens that the replies of an endpoint cost, from `usage` in each of them.

judge gpt-4: 120 replies for 212,345 prompt tokens and 23,456 completion tokens; 40 replies were there already
"""

import threading

from pydantic import BaseModel


class TokenCounts(BaseModel):
    """The `usage` of a chat completion."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class UsageMeter:
    """The sum over the replies of an endpoint; threads share it."""

    def __init__(self) -> None:
        self.num_replies = 0
        self.num_reused = 0
        self.num_uncounted = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self._lock = threading.Lock()

    def add(self, counts: TokenCounts | None) -> None:
        """Add a reply; None if the endpoint did not count its tokens."""
        with self._lock:
            self.num_replies += 1
            if counts is None:
                self.num_uncounted += 1
                return
            self.prompt_tokens += counts.prompt_tokens
            self.completion_tokens += counts.completion_tokens

    def add_reused(self) -> None:
        """Count a reply that was there already."""
        with self._lock:
            self.num_reused += 1

    def cost_line(self, name: str) -> str:
        """Return the sum as a line, which begins with the name."""
        line = (
            f"{name}: {self.num_replies} replies for {self.prompt_tokens:,} prompt tokens and "
            f"{self.completion_tokens:,} completion tokens"
        )
        if self.num_uncounted:
            line += f" ({self.num_uncounted} replies without a count)"
        if self.num_reused:
            line += f"; {self.num_reused} replies were there already"
        return line
