"""Calls of a judging model: a prompt -> the verdict in its reply, asked for a second time if it cannot be read.

    reply with a verdict          the verdict
    reply without                 the judge is asked once more, with a reminder; after that the verdict is None
    prompt that is refused        None (too long, or filtered); an error if the first MAX_REFUSED are all refused

A parameter, a key or an address at fault concerns every call. `check` finds it with one short call before any answer is
generated.
"""

import sys
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from eval.judging.reply_text import without_reasoning
from eval.judging.verdicts import Reply
from sampler.engines.chat_endpoint import ChatEndpoint, ChatMessage, RefusedPromptError
from winnow.errors import ServerError

# Tries of the first call: a fault of every call should show at once.
NUM_CHECK_TRIES = 3
# Refusals from the first prompt on that are an error: prompts are seldom refused, so the cause concerns all of them.
MAX_REFUSED = 8

Value = TypeVar("Value")


class VerdictCalls:
    """The calls of a judge; threads share it."""

    def __init__(self, endpoint: ChatEndpoint) -> None:
        self._endpoint = endpoint
        self._lock = threading.Lock()
        self._is_any_accepted = False
        self._num_refused = 0

    def check(self, system_prompt: str, prompt: str) -> None:
        """Ask for a short reply; a line on stderr tells so. Raises ServerError if the endpoint gives none."""
        name = self._endpoint.settings.model
        print(f"checking the judge {name} at {self._endpoint.url}", file=sys.stderr, flush=True)
        self._endpoint.send([ChatMessage("system", system_prompt), ChatMessage("user", prompt)], NUM_CHECK_TRIES)

    def ask(
        self,
        messages: Sequence[ChatMessage],
        parse: Callable[[str, str | None], Value | None],
        reminder: str,
        repetition: str,
    ) -> tuple[Value | None, str]:
        """Return the verdict, None if it is unreadable or refused, and the replies. Raises ServerError."""
        try:
            reply = Reply(*self._endpoint.ask(messages, repetition))
            self._is_any_accepted = True
            verdict = parse(*reply)
            if verdict is not None:
                return verdict, reply.explanation
            reminded = [*messages[:-1], *_reminded(messages[-1], reply, reminder)]
            second_reply = Reply(*self._endpoint.ask(reminded, repetition))
        except RefusedPromptError as error:
            self._count_refusal(error)
            return None, f"the endpoint refused the prompt: {error}"
        return parse(*second_reply), f"{reply.explanation}\n\n{second_reply.explanation}"

    def _count_refusal(self, error: RefusedPromptError) -> None:
        """Count a refused prompt. Raises ServerError for MAX_REFUSED of them if no prompt was accepted before."""
        with self._lock:
            self._num_refused += 1
            num_refused = self._num_refused
        if num_refused >= MAX_REFUSED and not self._is_any_accepted:
            raise ServerError(
                f"the first {num_refused} prompts of the judge are all refused; the last: {error}"
            ) from None


def _reminded(prompt: ChatMessage, reply: Reply, reminder: str) -> list[ChatMessage]:
    """Return the messages that ask again. A reply without an answer is not sent: servers refuse an empty message."""
    answer = without_reasoning(reply.text).strip()
    if not answer:
        return [ChatMessage("user", f"{prompt.content}\n\n{reminder}")]
    return [prompt, ChatMessage("assistant", answer), ChatMessage("user", reminder)]
