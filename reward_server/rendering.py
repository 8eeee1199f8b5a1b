"""A prompt and a completion -> the tokens that one model reads and the tokens that are scored.

messages, text        rendered by the model's own chat template
messages, token ids   the rendered prompt, then the completion's ids as they are
token ids, token ids  both as they are; the prompt with its BOS

What cannot be rendered is an `UnscorableError` of that completion; nothing is cut, mended or guessed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from reward_server.spans import EosPolicy, ScoredSpan, UnscorableError, scored_span
from winnow.chat import Chat
from winnow.errors import ChatError
from winnow.records import Message


@dataclass(frozen=True)
class Conversation:
    """A prompt as (role, content) pairs, as they came over the wire: a role may be anything."""

    turns: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Text:
    """A completion as text; `is_finished` when the policy ended it itself."""

    text: str
    is_finished: bool


@dataclass(frozen=True)
class Ids:
    """A prompt or a completion as token ids."""

    ids: tuple[int, ...]


@dataclass(frozen=True)
class PromptGroup:
    """One prompt and its completions."""

    prompt: Conversation | Ids
    completions: tuple[Text | Ids, ...]


@dataclass(frozen=True)
class Limits:
    """What a model can read: token ids below `vocab_size`, at most `max_tokens` of prompt and completion together."""

    vocab_size: int
    max_tokens: int


@dataclass(frozen=True)
class ScoredTokens:
    """What a model reads and what of it is scored; `is_truncated` when the policy did not end the turn itself."""

    prompt_ids: list[int]
    span: ScoredSpan
    is_truncated: bool


class Renderer:
    """Renders for one model of the pair."""

    def __init__(self, chat: Chat, limits: Limits) -> None:
        self.chat = chat
        self.limits = limits

    def scored_tokens(self, prompt: Conversation | Ids, completion: Text | Ids, eos_policy: EosPolicy) -> ScoredTokens:
        """The tokens of a prompt and one completion. Raises UnscorableError."""
        eos = self.chat.eos_token_id
        if isinstance(completion, Text):
            prompt_ids, completion_ids = self._render(prompt, completion.text)
            is_finished = completion.is_finished
        else:
            prompt_ids, completion_ids = self._prompt_ids(prompt), list(completion.ids)
            is_finished = completion_ids[-1:] == [eos]
        span = scored_span(completion_ids, eos, is_finished=is_finished, eos_policy=eos_policy)
        self._check_limits(prompt_ids, span)
        return ScoredTokens(prompt_ids, span, not is_finished)

    def _render(self, prompt: Conversation | Ids, text: str) -> tuple[list[int], list[int]]:
        if isinstance(prompt, Ids):
            raise UnscorableError("invalid_conversation", "a prompt of token ids needs completions of token ids")
        if not text:
            raise UnscorableError("empty_completion", "the completion is an empty text; there is nothing to score")
        try:
            pair = self.chat.scored_pair(_messages(prompt), text)
        except ChatError as error:
            raise UnscorableError("invalid_conversation", str(error)) from error
        return pair.prompt_ids, pair.completion_ids

    def _prompt_ids(self, prompt: Conversation | Ids) -> list[int]:
        if isinstance(prompt, Ids):
            self._check_bos(prompt.ids)
            return list(prompt.ids)
        try:
            return self.chat.prompt_ids(_messages(prompt))
        except ChatError as error:
            raise UnscorableError("invalid_conversation", str(error)) from error

    def _check_bos(self, ids: Sequence[int]) -> None:
        bos = self.chat.tokenizer.bos_token_id
        if bos is None or bos == self.chat.eos_token_id:
            return
        if list(ids[:1]) != [bos] or ids.count(bos) != 1:
            raise UnscorableError(
                "invalid_conversation",
                f"the prompt's token ids should hold exactly one BOS (id {bos}), at the start; they begin "
                f"{list(ids[:4])} and hold {ids.count(bos)}",
            )

    def _check_limits(self, prompt_ids: list[int], span: ScoredSpan) -> None:
        num_tokens = len(prompt_ids) + len(span.token_ids)
        if num_tokens > self.limits.max_tokens:
            raise UnscorableError(
                "too_long",
                f"prompt and completion are {len(prompt_ids)} + {len(span.token_ids)} = {num_tokens} tokens, more than "
                f"max_tokens {self.limits.max_tokens}; shorten them, or raise max_tokens if the models allow it",
            )
        if (largest := max([*prompt_ids, *span.token_ids])) >= self.limits.vocab_size:
            raise UnscorableError(
                "invalid_token", f"token id {largest} is not below the vocabulary's size {self.limits.vocab_size}"
            )


def _messages(prompt: Conversation) -> list[Message]:
    """The prompt as messages of known roles. Raises UnscorableError."""
    messages = []
    for role, content in prompt.turns:
        try:
            messages.append(Message.model_validate({"role": role, "content": content}))
        except ValidationError:
            raise UnscorableError(
                "invalid_conversation", f"unknown role {role!r}; the roles are system, user and assistant"
            ) from None
    return messages
