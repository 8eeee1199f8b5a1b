"""A group -> the tokens that one model reads of each completion, and the tokens that are scored.

prompt      completion
messages    text        rendered by the model's own chat template
messages    token ids   the rendered prompt, then the completion's ids as they are
token ids   token ids   both as they are; the prompt with its BOS, if the model reads one

A completion's ids may hold no control token but the EOS that closes it.

The prompt is rendered once for all its completions. An `UnscorableError` stands in the place of a completion that
cannot be rendered. Nothing is cut, repaired or guessed; only recipe rewardbench (rewardbench.py) cuts.
"""

from dataclasses import dataclass, replace
from typing import Any

from reward_server.groups import CompletionInput, CompletionText, Group, Prompt, is_token_ids
from reward_server.scoring.rewardbench import render_rewardbench
from reward_server.scoring.spans import (
    RenderedCompletion,
    UnscorableError,
    refuse_control_tokens,
    select_scored_ids,
)
from winnow.chat import Chat
from winnow.conversations import ROLES
from winnow.errors import ChatError, ControlTokenError
from winnow.records import Message
from winnow.reward_options import EosPolicy

# Rendering time grows with the square of the number of messages: this many take half a second, and all callers wait.
MAX_MESSAGES = 512
# Longest quotation of a caller's text in an error.
MAX_QUOTED_CHARS = 40

Rendering = RenderedCompletion | UnscorableError


@dataclass(frozen=True)
class Limits:
    """Limits of a model: token ids below `vocab_size`, at most `max_tokens` of prompt and completion together."""

    vocab_size: int
    max_tokens: int


class Renderer:
    """The renderer of groups for one model of the pair."""

    def __init__(self, chat: Chat, limits: Limits) -> None:
        self.chat = chat
        self.limits = limits

    def render_group(self, group: Group, eos_policy: EosPolicy) -> list[Rendering]:
        """Render each completion with the prompt, or return the reason why it cannot be scored."""
        try:
            prompt_ids, ids_of_text = self._encode_group(group)
        except UnscorableError as error:
            return [_empty_text_error(completion) or error for completion in group.completions]
        renderings: list[Rendering] = []
        for completion in group.completions:
            try:
                renderings.append(self._render_completion(prompt_ids, completion, ids_of_text, eos_policy))
            except UnscorableError as error:
                renderings.append(error)
        return renderings

    def render_rewardbench_group(self, group: Group) -> list[Rendering]:
        """Render messages and texts as RewardBench does, or return the reason why a completion cannot be scored."""
        texts = _texts(group)
        try:
            results = render_rewardbench(self.chat, _checked_messages(group.prompt), texts)
        except UnscorableError as error:
            return [error] * len(texts)
        except ChatError as error:
            return [UnscorableError(error.status, str(error))] * len(texts)
        renderings: list[Rendering] = []
        for result in results:
            if isinstance(result, ChatError):
                renderings.append(_completion_error(result))
                continue
            try:
                self._check_limits(result)
                renderings.append(result)
            except UnscorableError as error:
                renderings.append(error)
        return renderings

    def _encode_group(self, group: Group) -> tuple[list[int], dict[str, list[int] | ChatError]]:
        """Return the prompt's token ids, and the ids of each completion of text by its text.

        Raises UnscorableError for the prompt's own errors.
        """
        texts = [text for text in _texts(group) if text]
        if is_token_ids(group.prompt) and not texts:
            prompt_ids = list(group.prompt)
            self._check_bos(prompt_ids)
            return prompt_ids, {}
        messages = _checked_messages(group.prompt)
        try:
            prompt_ids, completion_ids = self.chat.encode_completions(messages, texts)
        except ChatError as error:
            raise UnscorableError(error.status, str(error)) from error
        return prompt_ids, dict(zip(texts, completion_ids, strict=True))

    def _render_completion(
        self,
        prompt_ids: list[int],
        completion: CompletionInput,
        ids_of_text: dict[str, list[int] | ChatError],
        eos_policy: EosPolicy,
    ) -> RenderedCompletion:
        """Select the scored tokens of a completion and check the limits. Raises UnscorableError."""
        empty_text_error = _empty_text_error(completion)
        if empty_text_error is not None:
            raise empty_text_error
        stop_ids = self.chat.stop_ids
        if isinstance(completion, str):
            completion = CompletionText(completion)
        if isinstance(completion, CompletionText):
            encoded = ids_of_text[completion.text]
            if isinstance(encoded, ChatError):
                raise _completion_error(encoded)
            completion_ids = encoded
            is_finished = completion.is_finished
        else:
            completion_ids = list(completion)
            refuse_control_tokens(completion_ids, stop_ids, self.chat.control_tokens)
            is_finished = bool(completion_ids) and completion_ids[-1] in stop_ids
        scored_ids, is_eos_scored = select_scored_ids(
            completion_ids, stop_ids, is_finished=is_finished, eos_policy=eos_policy
        )
        rendered = RenderedCompletion(prompt_ids, scored_ids, is_eos_scored, is_truncated=not is_finished)
        self._check_limits(rendered)
        return rendered

    def _check_bos(self, prompt_ids: list[int]) -> None:
        """Raise UnscorableError for a prompt that begins with the same BOS twice."""
        if self.chat.has_repeated_bos(prompt_ids):
            raise UnscorableError(
                "invalid_conversation",
                f"the prompt's token ids begin with the same BOS twice ({prompt_ids[:4]}...); take out the first of "
                "them, which a tokenizer added to a template's",
            )

    def _check_limits(self, rendered: RenderedCompletion) -> None:
        """Raise UnscorableError for too many tokens, and for a token id outside of the vocabulary."""
        if rendered.num_tokens > self.limits.max_tokens:
            raise UnscorableError(
                "too_long",
                f"prompt and completion are {len(rendered.prompt_ids)} + {len(rendered.scored_ids)} = "
                f"{rendered.num_tokens} tokens, more than max_tokens {self.limits.max_tokens}; shorten them, or raise "
                "max_tokens if the models allow it",
            )
        largest_id = max([*rendered.prompt_ids, *rendered.scored_ids])
        if largest_id >= self.limits.vocab_size:
            raise UnscorableError(
                "invalid_token", f"token id {largest_id} is not below the vocabulary's size {self.limits.vocab_size}"
            )


def with_instruction(group: Group, instruction: str) -> Group:
    """Put an instruction and a blank line before the group's first user message.

    Without an instruction, and for a prompt of token ids, the group is returned as it is.
    """
    if not instruction or is_token_ids(group.prompt):
        return group
    messages: list[Any] = list(group.prompt)
    for index, message in enumerate(messages):
        if message.role == "user":
            messages[index] = message.model_copy(update={"content": f"{instruction}\n\n{message.content}"})
            break
    return replace(group, prompt=messages)


def _texts(group: Group) -> list[str]:
    """Return the completions that are texts, in order."""
    texts = []
    for completion in group.completions:
        if isinstance(completion, CompletionText):
            texts.append(completion.text)
        elif isinstance(completion, str):
            texts.append(completion)
    return texts


def _empty_text_error(completion: CompletionInput) -> UnscorableError | None:
    """Return the error of a completion that is an empty text, None for every other completion."""
    if isinstance(completion, CompletionText):
        completion = completion.text
    if completion != "":
        return None
    return UnscorableError("empty_completion", "the completion is an empty text; there is nothing to score")


def _completion_error(error: ChatError) -> UnscorableError:
    """Return the error of a completion that cannot be rendered, although its prompt can."""
    if isinstance(error, ControlTokenError):
        return UnscorableError(error.status, str(error))
    return UnscorableError("unrenderable", str(error))


def _checked_messages(prompt: Prompt) -> list[Message]:
    """Return the prompt's messages. Raises UnscorableError for too many of them, unknown roles and token ids."""
    if is_token_ids(prompt):
        raise UnscorableError("invalid_conversation", "a prompt of token ids needs completions of token ids")
    if len(prompt) > MAX_MESSAGES:
        raise UnscorableError(
            "too_long",
            f"the prompt has {len(prompt)} messages, more than {MAX_MESSAGES}; leave out the first, or send token ids",
        )
    messages = []
    for message in prompt:
        if not isinstance(message, Message):
            raise TypeError(f"a prompt to render should hold Message objects, holds {type(message).__name__}")
        if message.role not in ROLES:
            raise UnscorableError(
                "invalid_conversation",
                f"unknown role {message.role[:MAX_QUOTED_CHARS]!r}; the roles are system, user and assistant",
            )
        messages.append(message)
    return messages
