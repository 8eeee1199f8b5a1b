"""Chat: a tokenizer with a chat template. Every conversation becomes text and token ids here.

    prompt_ids(messages)                      up to the header of the next assistant turn
    conversation(messages)                    the whole, with the loss mask of its assistant turns
    encode_completions(messages, texts)       a prompt, and each completion through the end of its turn

What is rendered is checked: every message must stand in the text as it is, every assistant turn must begin where its
prompt ends, and no message may hold a control token.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from typing import Any

from winnow.chat.encoding import Span, TextEncoder
from winnow.chat.end_of_turn import ANSWER, NEXT_QUESTION, QUESTION, SYSTEM, WrittenTokens, written_tokens
from winnow.chat.templates import SEGMENTED_TEMPLATES, template_source
from winnow.chat.tokenizer import control_tokens, document_bos, pattern_of
from winnow.chat.tokenizer_hash import tokenizer_hash
from winnow.chat.turns import find_turn
from winnow.chat_config import DEFAULT_TEMPLATE_DATE
from winnow.errors import ChatError, ControlTokenError, ModelError, first_line
from winnow.records import Message

# What an expression of a template raises by itself, like "text" + 1.
EXPRESSION_ERRORS = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError)


@dataclass(frozen=True)
class RenderedConversation:
    """A conversation as tokens: `loss_mask[i]` is True if token i belongs to an assistant turn (text to end of turn).

    `loss_spans` are the same turns as (start, end) in characters of `text`.
    """

    text: str
    loss_spans: list[Span]
    token_ids: list[int]
    loss_mask: list[bool]


def check_messages(messages: Sequence[Message], last_role: str) -> None:
    """Raise ChatError unless user and assistant alternate up to `last_role`, after an optional system message."""
    if not messages:
        raise ChatError("a conversation needs at least one message")
    turns = list(messages)
    if turns[0].role == "system":
        del turns[0]
    for index, message in enumerate(turns):
        expected = ("user", "assistant")[index % 2]
        if message.role != expected:
            raise ChatError(f"turn {index + 1} should be {expected}, is {message.role}")
    if not turns or turns[-1].role != last_role:
        raise ChatError(f"the last message should be {last_role}, is {messages[-1].role}")


class Chat:
    """A tokenizer with a template, which renders every conversation.

    `system_prompt` is put before a conversation that has no system message. `template_kwargs` are variables of the
    template, and `template_date` is the date for one that writes today's. With `allow_changed_messages`, a template may
    leave out, add or change text of a conversation, but not of a completion that is scored. `generation_eos_ids` are
    further ids at which sampling stops.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: str = "lab",
        system_prompt: str | None = None,
        *,
        template_kwargs: Mapping[str, Any] | None = None,
        template_date: date = DEFAULT_TEMPLATE_DATE,
        allow_changed_messages: bool = False,
        generation_eos_ids: Sequence[int] = (),
    ) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.system_prompt = system_prompt
        self.template_kwargs = dict(template_kwargs or {})
        self.template_date = template_date
        self.allow_changed_messages = allow_changed_messages
        self._source = template_source(template, tokenizer)
        self._encoder = TextEncoder(tokenizer, is_segmented=template in SEGMENTED_TEMPLATES)
        self._eos_ids = [token_id for token_id in generation_eos_ids if token_id < len(tokenizer)]
        if tokenizer.eos_token_id is not None:
            self._eos_ids.insert(0, int(tokenizer.eos_token_id))

    # What the tokenizer and the template are.

    @cached_property
    def template_hash(self) -> str:
        """Sixteen hex digits of the SHA-256 of the template: name, text, system prompt, BOS, end of turn, variables."""
        variables = json.dumps(self.template_kwargs, sort_keys=True, default=str)
        special = [str(self.tokenizer.bos_token), self.end_of_turn]
        settings = [self.system_prompt or "", *special, self.template_date.isoformat(), variables]
        identity = "\0".join([self.template, self._source, *settings])
        return hashlib.sha256(identity.encode()).hexdigest()[:16]

    @cached_property
    def tokenizer_hash(self) -> str:
        """SHA-256 of all that turns a text into token ids; two tokenizers of one hash give the same ids."""
        return tokenizer_hash(self.tokenizer)

    @cached_property
    def control_tokens(self) -> dict[int, str]:
        """The control tokens by id, which neither a message nor a completion may hold."""
        structure = self._render_probe([QUESTION, ANSWER, NEXT_QUESTION]) or self._render_probe([QUESTION, ANSWER])
        return control_tokens(self.tokenizer, self._eos_ids, structure or "")

    def _render_probe(self, messages: Sequence[Message]) -> str | None:
        """Render messages of winnow's own; None if the template refuses them."""
        try:
            return self._apply_template(messages, add_generation_prompt=False)
        except ChatError:
            return None

    # The end of a turn.

    @cached_property
    def end_of_turn(self) -> str:
        """The token that closes an assistant turn: what the template writes there, else the tokenizer's EOS."""
        token = self._written.end_of_turn(self._eos_tokens)
        if token is None:
            token = self.tokenizer.eos_token
        if token is None:
            raise self._end_of_turn_error()
        return str(token)

    @property
    def end_of_turn_id(self) -> int:
        """Id of the token that closes an assistant turn."""
        return int(self.tokenizer.convert_tokens_to_ids(self.end_of_turn))

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Ids at which sampling stops: the end of turn, the tokenizer's EOS and the model's list."""
        return frozenset([self.end_of_turn_id, *self._eos_ids])

    def check_end_of_turn(self) -> None:
        """Raise ModelError unless the template closes an assistant turn with a token at which sampling stops.

        Otherwise a policy would never learn to write that token, and no completion of it would be finished. Example:
        Gemma's template closes a turn with <end_of_turn>; its EOS is <eos>.
        """
        try:
            is_closed = self._written.end_of_turn(self._eos_tokens) is not None
            if is_closed and not self.allow_changed_messages:
                self.conversation([QUESTION, ANSWER])
        except ChatError as error:
            if self.tokenizer.eos_token is None:
                raise self._no_eos_error("set eos_token to the token that closes a turn") from error
            remedy = "take a template that accepts it"
            if self.system_prompt:
                remedy += ", or unset system_prompt if the template refuses system messages"
            name = self.tokenizer.name_or_path
            raise ModelError(f"chat_template {self.template} does not fit {name!r}: {error}; {remedy}") from error
        if not is_closed:
            raise self._end_of_turn_error()

    def _end_of_turn_error(self) -> ModelError:
        """Return the error of a template that closes no turn with a token at which sampling stops."""
        name = self.tokenizer.name_or_path
        remedy = "take a template that writes it"
        written = self._written.after_last_turn or self._written.before_next_turn
        if written is not None:
            remedy = f"set eos_token: {written!r}, which the template writes there, or {remedy}"
        if not self._eos_tokens:
            return self._no_eos_error(remedy)
        return ModelError(
            f"chat_template {self.template} does not close an assistant turn with the EOS of {name!r}, "
            f"{' or '.join(sorted(self._eos_tokens))}; {remedy}"
        )

    def _no_eos_error(self, remedy: str) -> ModelError:
        return ModelError(f"the tokenizer of {self.tokenizer.name_or_path!r} has no EOS; {remedy}")

    @cached_property
    def _written(self) -> WrittenTokens:
        def render(messages: Sequence[Message]) -> str:
            return self._apply_template(self._with_system(messages), add_generation_prompt=False)

        return written_tokens(render, self._control_pattern)

    @cached_property
    def _eos_tokens(self) -> set[str]:
        return set(self.tokenizer.convert_ids_to_tokens(self._eos_ids))

    # Conversations as tokens.

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """Render a conversation up to and including the header of the next assistant turn. Raises ChatError."""
        check_messages(messages, last_role="user")
        messages = self._with_system(messages)
        text = self._render_text(messages, add_generation_prompt=True)
        self._check_holds_messages(messages, text)
        return text

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Encode `prompt_text`. Raises ChatError."""
        check_messages(messages, last_role="user")
        return self._render_prompt(self._with_system(messages)).token_ids

    def conversation(self, messages: Sequence[Message], *, is_last_turn_only: bool = False) -> RenderedConversation:
        """Render a whole conversation, which ends in an assistant turn, with its loss mask. Raises ChatError.

        With `is_last_turn_only`, earlier assistant turns belong to the prompt and carry no loss.
        """
        check_messages(messages, last_role="assistant")
        messages = self._with_system(messages)
        text = self._render_text(messages, add_generation_prompt=False)
        turns = self._find_turns(messages, text)
        trained_turns = turns
        if is_last_turn_only:
            trained_turns = turns[-1:]
        for turn in trained_turns:
            if isinstance(turn, ChatError):
                raise turn
        self._check_holds_messages(messages, text)
        return self._encode_turns(text, turns, trained_turns)

    def encode_completions(
        self, messages: Sequence[Message], completions: Sequence[str]
    ) -> tuple[list[int], list[list[int] | ChatError]]:
        """Return the token ids of a prompt and of each of its completions, equal to those of `conversation`.

        A completion's ids end with the end of turn, if the template writes it. The prompt is rendered once. A ChatError
        stands in the place of a completion that cannot be rendered. Raises ChatError for the prompt's own errors.
        """
        check_messages(messages, last_role="user")
        messages = self._with_system(messages)
        prompt = self._render_prompt(messages)
        results: dict[int, list[int] | ChatError] = {}
        turns: dict[int, str] = {}
        for index, completion in enumerate(completions):
            try:
                turns[index] = self._render_turn(messages, prompt.text, completion)
            except ChatError as error:
                results[index] = error
        encoded = self._encoder.encode_after(prompt.text, prompt.token_ids, list(turns.values()))
        results.update(zip(turns, encoded, strict=True))
        return prompt.token_ids, [results[index] for index in range(len(completions))]

    def unchecked_text(self, messages: Sequence[Message]) -> str:
        """Apply the template to messages without checks, default system prompt and generation prompt.

        For recipes that follow the rendering of other software. A control token in a message is read as structure.
        Raises ChatError.
        """
        return self._apply_template(messages, add_generation_prompt=False)

    def encode(self, text: str) -> list[int]:
        """Encode a text with the tokenizer, without a BOS or EOS that the text does not hold."""
        return self._encoder.encode(text)

    def has_repeated_bos(self, token_ids: Sequence[int]) -> bool:
        """Tell whether the ids begin with the same BOS twice, as when both template and tokenizer add it.

        Nothing else about BOS is a fault: some templates never write it, others open every turn with it.
        """
        bos = self.tokenizer.bos_token_id
        return bos is not None and list(token_ids[:2]) == [bos, bos]

    def _render_prompt(self, messages: Sequence[Message]) -> RenderedConversation:
        text = self._render_text(messages, add_generation_prompt=True)
        turns = self._find_turns(messages, text)
        self._check_holds_messages(messages, text)
        return self._encode_turns(text, turns, turns)

    def _encode_turns(
        self, text: str, turns: Sequence[Span | ChatError], trained_turns: Sequence[Span | ChatError]
    ) -> RenderedConversation:
        """Encode a rendered text, cut at the turns that stand in it; the trained turns carry loss."""
        spans = [turn for turn in turns if not isinstance(turn, ChatError)]
        loss_spans = [turn for turn in trained_turns if not isinstance(turn, ChatError)]
        token_ids, turn_of_token = self._encoder.encode_cut(text, spans)
        if self.has_repeated_bos(token_ids):
            raise ChatError(
                f"template {self.template} begins a conversation with the same BOS twice ({token_ids[:4]}...); take "
                "one of them out of the template"
            )
        loss_mask = [index >= 0 and spans[index] in loss_spans for index in turn_of_token]
        return RenderedConversation(text, loss_spans, token_ids, loss_mask)

    # Rendering: messages -> text.

    def _with_system(self, messages: Sequence[Message]) -> list[Message]:
        if self.system_prompt and messages[0].role != "system":
            return [Message(role="system", content=self.system_prompt), *messages]
        return list(messages)

    def _render_text(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """Render messages without control tokens. A text that ends in an assistant turn ends with its closing token."""
        self._refuse_control_tokens(messages)
        text = self._apply_template(messages, add_generation_prompt=add_generation_prompt)
        if not add_generation_prompt:
            text += self._appended_end_of_turn
        return text

    def _apply_template(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        from jinja2 import TemplateError

        try:
            text = self.tokenizer.apply_chat_template(
                [{"role": message.role, "content": message.content} for message in messages],
                chat_template=self._source,
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
                strftime_now=self.template_date.strftime,
                date_string=self.template_date.strftime("%d %b %Y"),
                document_bos=self._document_bos,
                **self.template_kwargs,
            )
        except (TemplateError, *EXPRESSION_ERRORS) as error:
            raise ChatError(f"template {self.template} does not take this conversation: {first_line(error)}") from error
        return str(text)

    @cached_property
    def _document_bos(self) -> str:
        return document_bos(self.tokenizer)

    @cached_property
    def _appended_end_of_turn(self) -> str:
        """The end of turn, if the template writes it before the next turn only (GLM-4); else an empty text."""
        if self._written.after_last_turn is None and self._written.end_of_turn(self._eos_tokens):
            return self.end_of_turn
        return ""

    def _find_turns(self, messages: Sequence[Message], text: str) -> list[Span | ChatError]:
        """Return the span of each assistant turn in a conversation's text, from the end of its prompt.

        A ChatError stands in the place of a turn before which the text is not its prompt: some templates render a turn
        differently once messages follow. Raises ChatError for a turn that the template changes.
        """
        turns: list[Span | ChatError] = []
        for index, message in enumerate(messages):
            if message.role != "assistant":
                continue
            prompt = self._apply_template(messages[:index], add_generation_prompt=True)
            if not text.startswith(prompt):
                turns.append(self._unstable_prompt_error(messages, index))
                continue
            turn = find_turn(text, len(prompt), message.content, self._closers)
            if not self.allow_changed_messages and turn.text(text) != message.content.strip():
                raise ChatError(
                    f"template {self.template} changes an assistant message (some add reasoning, or take it out); set "
                    "chat_template_kwargs if it has a switch ({enable_thinking: false} for Qwen3), use a .jinja "
                    "template that leaves messages as they are, or set allow_changed_messages: true to accept it"
                )
            turns.append((turn.start, turn.end))
        return turns

    def _render_turn(self, messages: Sequence[Message], prompt: str, completion: str) -> str:
        """Render a completion after its prompt's messages, whose text is `prompt`, through the end of its turn.

        Raises ChatError, also if the template changes the completion.
        """
        answer = Message(role="assistant", content=completion)
        self._refuse_control_tokens([answer])
        text = self._apply_template([*messages, answer], add_generation_prompt=False) + self._appended_end_of_turn
        if not text.startswith(prompt):
            raise self._unstable_prompt_error(messages, len(messages))
        turn = find_turn(text, len(prompt), completion, self._closers)
        turn_text = turn.text(text)
        if turn_text == completion.strip():
            return text[: turn.end]
        control_token = self._control_pattern.search(turn_text)
        if control_token:
            raise ChatError(
                f"template {self.template} writes {control_token[0]!r} into the turn of a completion; use a .jinja "
                "template whose generation prompt holds it"
            )
        raise ChatError(
            f"template {self.template} changes the completion (some add reasoning, or take it out); set "
            "chat_template_kwargs if it has a switch ({enable_thinking: false} for Qwen3), send token ids, or use a "
            ".jinja template that leaves completions as they are"
        )

    def _unstable_prompt_error(self, messages: Sequence[Message], index: int) -> ChatError:
        """Return the error of a template that renders the prompt of turn `index` differently once the turn follows."""
        remedy = "use a .jinja template that writes a prompt in the same way wherever it stands"
        if index < len(messages) - 1:
            remedy += ", or make this turn the last of a row of its own"
        elif messages[0].role == "system":
            remedy += ", or put the system message's text into the first user message"
        return ChatError(
            f"template {self.template} renders the beginning of a conversation differently if messages follow; {remedy}"
        )

    # Checks of messages and text.

    @cached_property
    def _control_pattern(self) -> re.Pattern[str]:
        return pattern_of(self.control_tokens.values())

    @cached_property
    def _closers(self) -> re.Pattern[str] | None:
        """The tokens that may close a turn; None if the template closes no turn."""
        if not (self._written.after_last_turn or self._appended_end_of_turn):
            return None
        tokens = {self._written.after_last_turn, self._written.before_next_turn, self.end_of_turn, *self._eos_tokens}
        return pattern_of(token for token in self.control_tokens.values() if token in tokens)

    @cached_property
    def _writes_system_messages(self) -> bool:
        """False for a template that leaves system messages out (the first of Phi-3)."""
        text = self._render_probe([SYSTEM, QUESTION])
        return text is None or SYSTEM.content in text

    def _refuse_control_tokens(self, messages: Sequence[Message]) -> None:
        for message in messages:
            match = self._control_pattern.search(message.content)
            if match:
                raise ControlTokenError(
                    f"the {message.role} message holds the control token {match[0]!r}; take it out of the text"
                )

    def _check_holds_messages(self, messages: Sequence[Message], text: str) -> None:
        """Raise ChatError unless the text holds every message: the turns in order, a system message anywhere.

        Some templates put a system message into the last user turn, others trim white space around messages.
        """
        if self.allow_changed_messages:
            return
        position = 0
        for message in messages:
            is_system = message.role == "system"
            content = message.content.strip()
            start = text.find(content, 0 if is_system else position)
            if start < 0 or (is_system and not self._writes_system_messages):
                raise ChatError(
                    f"template {self.template} leaves out or changes the {message.role} message; use a template that "
                    "writes it, or set allow_changed_messages: true to accept it"
                )
            if not is_system:
                position = start + len(content)
