"""Messages -> text and token ids, with the spans that carry loss or score. The only place that renders a conversation.

    text       = template(messages)           jinja: lab, mixtral, mixtral-hf, plain, tokenizer[:NAME], or a file
    token_ids  = ids(prompt) + ids(assistant turn) + ...   a prompt's ids are a prefix of every continuation's ids
    loss_mask  = True on an assistant turn's text through its EOS, False elsewhere

Prompts for sampling, completions for scoring, rows for training and questions for evaluation are all rendered here, so
that they agree token for token. No token spans the border between a prompt and an assistant turn: the policy generates
after the prompt's last token. Where a tokenizer would merge across that border, the merge is cut. An example with a
tokenizer that has the tokens <s> (0), <|user|> (4), <|assistant|> (5), "5" (26), "\\n" (204) and "\\n\\n" (262):

    prompt "<s><|user|>\\nHi\\n<|assistant|>\\n"                        0 4 204 45 78 204 5 204

    completion "5"          encode(prompt + completion)         =  0 4 204 45 78 204 5 204 26
                            begins with the prompt's ids, so    -> 26

    completion "\\n\\n5"    encode(prompt + completion)         =  0 4 204 45 78 204 5 262 204 26
                            does not: 262 spans the border;
                            encode(completion) gives            -> 204 204 26

`mixtral` encodes every turn by itself, as mistral-common does; `mixtral-hf` encodes one string, as the Hugging Face
template of 2023 does. They differ in the first token after BOS, EOS and "[/INST]"; docs/chat.md compares them.
"""

import hashlib
import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

from winnow.chat_config import DEFAULT_TEMPLATE_DATE
from winnow.checkpoints import has_tokenizer
from winnow.errors import ChatError, ControlTokenError, ModelError, UsageError, first_line
from winnow.models import check_model_path, load_failure
from winnow.records import Message
from winnow.run_config import PolicyConfig

TEMPLATE_DIR = Path(__file__).parent / "templates"
SEGMENTED_TEMPLATES = frozenset({"mixtral"})  # each segment between two borders is encoded by itself


@dataclass(frozen=True)
class RenderedConversation:
    """A conversation as tokens: `loss_mask[i]` is True if token i belongs to an assistant turn (text through EOS).

    `loss_spans` are the same turns as (start, end) in characters of `text`.
    """

    text: str
    loss_spans: list[tuple[int, int]]
    token_ids: list[int]
    loss_mask: list[bool]


def template_source(name: str, tokenizer: Any) -> str:
    """Return the jinja text of a template: a built-in name, "tokenizer" for the tokenizer's own, or a path to a file.

    Some tokenizers come with several templates: "tokenizer" is their "default", "tokenizer:NAME" any of them. Raises
    UsageError for an unknown name, ModelError for a tokenizer without a template.
    """
    if name == "tokenizer" or name.startswith("tokenizer:"):
        return _tokenizer_template(tokenizer, name.partition(":")[2])
    path = Path(name)
    if name in built_in_templates():
        path = TEMPLATE_DIR / f"{name}.jinja"
    if not path.is_file():
        raise UsageError(
            f"chat_template {name!r} is neither a file nor one of {', '.join(built_in_templates())}, tokenizer"
        )
    return path.read_text()


def _tokenizer_template(tokenizer: Any, name: str) -> str:
    """Return the template that comes with a tokenizer, or the named one of several; an empty name is "default"."""
    templates = tokenizer.chat_template
    if not templates:
        raise ModelError(
            f"chat_template is tokenizer, but {tokenizer.name_or_path} has no template; "
            f"name one of {', '.join(built_in_templates())} or a .jinja file"
        )
    if isinstance(templates, list):  # the form of tokenizer_config.json
        templates = {entry["name"]: entry["template"] for entry in templates}
    if isinstance(templates, str):
        templates = {"default": templates}
    wanted = name or "default"
    if wanted not in templates:
        names = ", ".join(f"tokenizer:{known}" for known in sorted(templates))
        raise UsageError(f"{tokenizer.name_or_path} has no template named {wanted!r}; set chat_template to {names}")
    return str(templates[wanted])


def built_in_templates() -> list[str]:
    """Return the names of the templates that come with winnow."""
    return sorted(path.stem for path in TEMPLATE_DIR.glob("*.jinja"))


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

    `system_prompt` is put before a conversation that has no system message. `template_date` is the date for a template
    that writes today's. With `allow_changed_messages`, a template may leave out, add or change text of a conversation,
    but not of a completion that is scored.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: str = "lab",
        system_prompt: str | None = None,
        *,
        template_date: date = DEFAULT_TEMPLATE_DATE,
        allow_changed_messages: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.system_prompt = system_prompt
        self.template_date = template_date
        self.allow_changed_messages = allow_changed_messages
        self._source = template_source(template, tokenizer)
        self._is_segmented = template in SEGMENTED_TEMPLATES

    @cached_property
    def template_hash(self) -> str:
        """Sixteen hex digits of the SHA-256 of the template: name, text, system prompt, BOS, EOS and date."""
        special = [str(self.tokenizer.bos_token), str(self.tokenizer.eos_token)]
        settings = [self.system_prompt or "", *special, self.template_date.isoformat()]
        identity = "\0".join([self.template, self._source, *settings])
        return hashlib.sha256(identity.encode()).hexdigest()[:16]

    @property
    def eos_token_id(self) -> int:
        """Id of the token that closes an assistant turn."""
        return int(self.tokenizer.eos_token_id)

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """Render a conversation up to and including the header of the next assistant turn. Raises ChatError."""
        check_messages(messages, last_role="user")
        return self._render_text(self._with_system(messages), add_generation_prompt=True)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Encode `prompt_text`. Raises ChatError."""
        check_messages(messages, last_role="user")
        return self._render_tokens(self._with_system(messages), add_generation_prompt=True).token_ids

    def conversation(self, messages: Sequence[Message]) -> RenderedConversation:
        """Render a whole conversation, which ends in an assistant turn, with its loss mask. Raises ChatError."""
        check_messages(messages, last_role="assistant")
        return self._render_tokens(self._with_system(messages), add_generation_prompt=False)

    def encode_completion(self, messages: Sequence[Message], completion: str) -> tuple[list[int], list[int]]:
        """Return the token ids of a prompt and of its completion. Raises ChatError for a control token in either."""
        prompt_ids, completion_ids = self.encode_completions(messages, [completion])
        if isinstance(completion_ids[0], ChatError):
            raise completion_ids[0]
        return prompt_ids, completion_ids[0]

    def encode_completions(
        self, messages: Sequence[Message], completions: Sequence[str]
    ) -> tuple[list[int], list[list[int] | ChatError]]:
        """Return the token ids of a prompt and of each of its completions, equal to those of `conversation`.

        A completion's ids end with the EOS that closes the turn, if the template writes one. The prompt is rendered
        once. A ChatError stands in the place of a completion that cannot be rendered. Raises ChatError for the
        prompt's own errors.
        """
        check_messages(messages, last_role="user")
        messages = self._with_system(messages)
        prompt = self._render_tokens(messages, add_generation_prompt=True)
        results: dict[int, list[int] | ChatError] = {}
        turns: dict[int, str] = {}
        for index, completion in enumerate(completions):
            try:
                turns[index] = self._render_turn(messages, prompt.text, completion)
            except ChatError as error:
                results[index] = error
        results.update(zip(turns, self._encode_after(prompt, list(turns.values())), strict=True))
        return prompt.token_ids, [results[index] for index in range(len(completions))]

    def has_repeated_bos(self, token_ids: Sequence[int]) -> bool:
        """Tell whether the ids begin with the same BOS twice, as when both template and tokenizer add it.

        Nothing else about BOS is a fault: some templates never write it, others open every turn with it.
        """
        bos = self.tokenizer.bos_token_id
        return bos is not None and list(token_ids[:2]) == [bos, bos]

    def check_end_of_turn(self) -> None:
        """Raise ModelError unless the template closes an assistant turn with the tokenizer's EOS.

        Otherwise a policy would never learn to write the token at which its sampling stops, and no completion of it
        would be finished. Example: Gemma's template closes a turn with <end_of_turn>, its EOS is <eos>.
        """
        name = self.tokenizer.name_or_path
        if self.tokenizer.eos_token_id is None:
            raise ModelError(f"the tokenizer of {name!r} has no EOS; set eos_token to the token that closes a turn")
        question = Message(role="user", content="a")
        messages = [question, Message(role="assistant", content="b")]
        try:
            written = self._token_after_turn(messages)
            if written == self.tokenizer.eos_token:
                self.conversation(messages)
                return
        except ChatError as error:
            remedy = "take a template that accepts it"
            if self.system_prompt:
                remedy += ", or unset system_prompt if the template refuses system messages"
            raise ModelError(f"chat_template {self.template} does not fit {name!r}: {error}; {remedy}") from error
        remedy = "take a template that writes it"
        if written is not None:
            remedy = f"set eos_token: {written!r}, which the template writes there, or {remedy}"
        raise ModelError(
            f"chat_template {self.template} does not close an assistant turn with the EOS of {name!r}, "
            f"{self.tokenizer.eos_token}; {remedy}"
        )

    def _token_after_turn(self, messages: Sequence[Message]) -> str | None:
        """Return the first control token that the template writes after the last message's text; None without one."""
        prompt = self._render_text(messages[:-1], add_generation_prompt=True)
        text = self._render_text(messages, add_generation_prompt=False)
        if not text.startswith(prompt):
            raise self._unstable_beginning_error()
        start = text.find(messages[-1].content, len(prompt))
        match = self._control_pattern.search(text, start)
        if match is None:
            return None
        return match[0]

    def unchecked_text(self, messages: Sequence[Message]) -> str:
        """Apply the template to messages without checks, default system prompt and generation prompt.

        For recipes that follow the rendering of other software. A control token in a message is read as structure.
        Raises ChatError.
        """
        return self._apply_template(messages, add_generation_prompt=False)

    def encode(self, text: str) -> list[int]:
        """Encode a text with the tokenizer, without a BOS or EOS that the text does not hold."""
        return self._encode_all([text])[0]

    # Rendering: messages -> text.

    def _with_system(self, messages: Sequence[Message]) -> list[Message]:
        if self.system_prompt and messages[0].role != "system":
            return [Message(role="system", content=self.system_prompt), *messages]
        return list(messages)

    def _render_text(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        self._refuse_control_tokens(messages)
        return self._apply_template(messages, add_generation_prompt=add_generation_prompt)

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
            )
        except TemplateError as error:
            raise ChatError(f"template {self.template} does not take this conversation: {first_line(error)}") from error
        return str(text)

    def _assistant_spans(self, messages: Sequence[Message], text: str) -> list[tuple[int, int]]:
        """Return the character spans of the assistant turns: from the end of their prompt to the end of their EOS."""
        spans = []
        for index, message in enumerate(messages):
            if message.role != "assistant":
                continue
            prompt = self._render_text(messages[:index], add_generation_prompt=True)
            through_turn = self._render_text(messages[: index + 1], add_generation_prompt=False)
            end = self._turn_end(through_turn, len(prompt))
            if not (text.startswith(prompt) and text.startswith(through_turn[:end])):
                raise self._unstable_beginning_error()
            if not self.allow_changed_messages:
                self._check_is_unchanged(text[len(prompt) : end], message)
            spans.append((len(prompt), end))
        return spans

    def _check_is_unchanged(self, turn_text: str, message: Message) -> None:
        """Raise ChatError if an assistant turn, rendered through its EOS, is another text than its message."""
        if not self._is_same_text(turn_text, message.content):
            raise ChatError(
                f"template {self.template} changes an assistant message (some add reasoning, or take it out); use a "
                ".jinja template that leaves messages as they are, or set allow_changed_messages: true to accept it"
            )

    def _is_same_text(self, turn_text: str, content: str) -> bool:
        """Tell whether a rendered turn is its message's text with EOS; many templates trim white space around it."""
        return turn_text.removesuffix(self.tokenizer.eos_token).strip() == content.strip()

    def _check_holds_messages(self, messages: Sequence[Message], text: str) -> None:
        """Raise ChatError unless the text holds every message: the turns in order, a system message anywhere.

        Some templates put a system message into the last user turn, others trim white space around messages.
        """
        position = 0
        for message in messages:
            content = message.content.strip()
            start = text.find(content, 0 if message.role == "system" else position)
            if start < 0:
                raise ChatError(
                    f"template {self.template} leaves out or changes the {message.role} message; use a template that "
                    "writes it, or set allow_changed_messages: true to accept it"
                )
            if message.role != "system":
                position = start + len(content)

    def _render_turn(self, messages: Sequence[Message], prompt: str, completion: str) -> str:
        """Render a completion after its prompt's messages, whose text is `prompt`, through the EOS of its turn.

        Raises ChatError, also if the template changes the completion.
        """
        turn = Message(role="assistant", content=completion)
        self._refuse_control_tokens([turn])
        text = self._apply_template([*messages, turn], add_generation_prompt=False)
        if not text.startswith(prompt):
            raise self._unstable_beginning_error()
        end = self._turn_end(text, len(prompt))
        if not self._is_same_text(text[len(prompt) : end], completion):
            raise ChatError(
                f"template {self.template} changes the completion (some add reasoning, or take it out); send token "
                "ids, or use a .jinja template that leaves completions as they are"
            )
        return text[:end]

    def _turn_end(self, text: str, start: int) -> int:
        """Return the end of a text's last assistant turn, which begins at `start`: after its EOS, or the text's end."""
        eos = text.rfind(self.tokenizer.eos_token, start)
        if eos < 0:
            return len(text)
        return eos + len(self.tokenizer.eos_token)

    def _unstable_beginning_error(self) -> ChatError:
        """Return the error of a template that renders a prompt differently once its completion follows."""
        return ChatError(
            f"template {self.template} renders the beginning of a conversation differently if messages follow"
        )

    # Encoding: text -> token ids, never with a token across the border of an assistant turn.

    def _render_tokens(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> RenderedConversation:
        """Render messages and encode the text segment by segment, cut at the borders of the assistant turns."""
        text = self._render_text(messages, add_generation_prompt=add_generation_prompt)
        if not self.allow_changed_messages:
            self._check_holds_messages(messages, text)
        spans = self._assistant_spans(messages, text)
        borders = sorted({0, len(text), *itertools.chain.from_iterable(spans)})
        token_ids: list[int] = []
        loss_mask: list[bool] = []
        for start, end in itertools.pairwise(borders):
            segment_ids = self._encode_segment(text, start, end, token_ids)
            is_assistant_turn = (start, end) in spans
            token_ids += segment_ids
            loss_mask += [is_assistant_turn] * len(segment_ids)
        self._check_bos(token_ids)
        return RenderedConversation(text, spans, token_ids, loss_mask)

    def _encode_segment(self, text: str, start: int, end: int, ids_before: list[int]) -> list[int]:
        """Encode text[start:end], which follows the tokens `ids_before`, as the example at the top shows."""
        if self._is_segmented:
            return self._encode_by_itself(text, start, end)
        token_ids = self.encode(text[:end])
        if token_ids[: len(ids_before)] == ids_before:
            return token_ids[len(ids_before) :]
        return self.encode(text[start:end])

    def _encode_by_itself(self, text: str, start: int, end: int) -> list[int]:
        """Encode text[start:end] as SentencePiece encodes a text of its own; a BOS at the start stays one token."""
        bos = self.tokenizer.bos_token or ""
        if start == 0 and bos and text.startswith(bos):
            return [int(self.tokenizer.bos_token_id), *self.encode(self._dummy_prefix + text[len(bos) : end])]
        return self.encode(self._dummy_prefix + text[start:end])

    def _encode_after(self, prompt: RenderedConversation, texts: Sequence[str]) -> list[list[int]]:
        """Encode the rest of each text, which begins with the prompt's text, to the ids that `_encode_segment` gives.

        The prompt may be long and the texts many, so only the prompt's end is encoded again, from an anchor on. In the
        example at the top the anchor is <|assistant|>, and the prompt's ids from there are 5 204:

            encode("<|assistant|>\\n5")          = 5 204 26        begins with 5 204, so the rest is 26
            encode("<|assistant|>\\n\\n\\n5")      = 5 262 204 26    does not: encode("\\n\\n5") is 204 204 26
        """
        border = len(prompt.text)
        if self._is_segmented:
            return self._encode_all([self._dummy_prefix + text[border:] for text in texts])
        anchor, ids_before = self._anchor(prompt)
        encoded = self._encode_all([text[anchor:] for text in texts])
        results = []
        for text, token_ids in zip(texts, encoded, strict=True):
            if token_ids[: len(ids_before)] == ids_before:
                results.append(token_ids[len(ids_before) :])
            else:
                results.append(self.encode(text[border:]))
        return results

    def _anchor(self, prompt: RenderedConversation) -> tuple[int, list[int]]:
        """Return a character of the prompt's text from which encoding may start, and the prompt's ids from there.

        A tokenizer splits a text at its special tokens and encodes the parts separately. So nothing before the prompt's
        last special token affects the ids after it. The anchor is that token if the prompt's ids confirm this, else 0.
        """
        whole_prompt = (0, prompt.token_ids)
        starts = [match.start() for match in self._split_tokens.finditer(prompt.text)]
        if not starts or self.encode(prompt.text) != prompt.token_ids:
            return whole_prompt
        ids_from_anchor = self.encode(prompt.text[starts[-1] :])
        num_before = len(prompt.token_ids) - len(ids_from_anchor)
        if prompt.token_ids[num_before:] != ids_from_anchor:
            return whole_prompt
        return starts[-1], ids_from_anchor

    @cached_property
    def _dummy_prefix(self) -> str:
        """The space that SentencePiece puts before a text, if a fast tokenizer with its vocabulary does not add it."""
        vocabulary = self.tokenizer.get_vocab()
        if "\u2581x" in vocabulary and self.encode("x") != [vocabulary["\u2581x"]]:
            return " "
        return ""

    def _encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode texts in one call, which a fast tokenizer spreads over the cores."""
        if not texts:
            return []
        encoded = self.tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False)
        return [list(ids) for ids in encoded["input_ids"]]

    def _check_bos(self, token_ids: list[int]) -> None:
        if self.has_repeated_bos(token_ids):
            raise ChatError(
                f"template {self.template} begins a conversation with the same BOS twice ({token_ids[:4]}...); take "
                "one of them out of the template"
            )

    # Special tokens.

    @cached_property
    def control_tokens(self) -> dict[int, str]:
        """The tokenizer's control tokens by id, which neither a message nor a completion may hold."""
        tokens = dict(zip(self.tokenizer.all_special_ids, self.tokenizer.all_special_tokens, strict=True))
        for token_id, token in self.tokenizer.added_tokens_decoder.items():
            if token.special:
                tokens[token_id] = token.content
        return tokens

    @cached_property
    def _control_pattern(self) -> re.Pattern[str]:
        return _any_of(self.control_tokens.values())

    @cached_property
    def _split_tokens(self) -> re.Pattern[str]:
        """Special tokens at which a fast tokenizer splits every text, independently of the text around them."""
        if not self.tokenizer.is_fast:
            return _any_of([])
        added = [token for token in self.tokenizer.added_tokens_decoder.values() if not token.normalized]
        if any(token.lstrip or token.rstrip or token.single_word for token in added):
            return _any_of([])
        return _any_of(token.content for token in added)

    def _refuse_control_tokens(self, messages: Sequence[Message]) -> None:
        for message in messages:
            match = self._control_pattern.search(message.content)
            if match:
                raise ControlTokenError(
                    f"the {message.role} message holds the control token {match[0]!r}; take it out of the text"
                )


def _any_of(tokens: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern that matches any of the tokens, the longest first; without tokens it never matches."""
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def load_tokenizer(model: str, eos_token: str | None = None, added_tokens: Sequence[str] = ()) -> Any:
    """Load the tokenizer of a local model folder or hub id. Raises ModelError if it has none.

    `eos_token` and `added_tokens` become special tokens if the tokenizer does not have them yet: a base model learns
    the LAB form's headers in SFT, and its embedding grows with them.
    """
    from transformers import AutoTokenizer

    check_model_path(model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise ModelError(f"no tokenizer could be loaded from {model!r}: {_tokenizer_failure(model, error)}") from error
    if eos_token is not None and tokenizer.eos_token != eos_token:
        tokenizer.add_special_tokens({"eos_token": eos_token})
    missing = [token for token in added_tokens if token not in tokenizer.get_vocab()]
    tokenizer.add_tokens(missing, special_tokens=True)
    return tokenizer


def load_chat(policy: PolicyConfig, model: str) -> Chat:
    """Return the renderer of a policy's conversations, with the tokenizer of one of its checkpoints.

    Raises ModelError if its template does not close a turn with the token at which sampling stops.
    """
    tokenizer = load_tokenizer(model, policy.eos_token, policy.added_tokens)
    chat = Chat(
        tokenizer,
        policy.chat_template,
        policy.system_prompt,
        template_date=policy.template_date,
        allow_changed_messages=policy.allow_changed_messages,
    )
    chat.check_end_of_turn()
    return chat


def _tokenizer_failure(model: str, error: Exception) -> str:
    reason = load_failure(model, error)
    remedy = "give a folder that holds a model and its tokenizer"
    if not Path(model).is_dir():
        return reason
    if has_tokenizer(Path(model)):
        return f"its tokenizer's files cannot be read ({reason}); {remedy}"
    return f"it holds no tokenizer's files; {remedy}"
