"""Messages -> text and token ids, with the spans that carry loss or score. The only place that renders a conversation.

    text       = template(messages)                        jinja: lab, mixtral, mixtral-hf, plain, tokenizer, or a file
    token_ids  = ids(prompt) + ids(assistant turn) + ...   a prompt's ids are a prefix of every continuation's ids
    loss_mask  = True on an assistant turn's text through its EOS, False elsewhere

Prompts for sampling, completions for scoring, rows for training, questions for evaluation: all come from here, so they
agree token for token. A token never spans the border between a prompt and an assistant turn: the policy generates after
the prompt's last token, so a merge across that border (byte-level BPE joins "\\n" and "\\n" to one token) is cut there.

`mixtral` encodes every turn by itself, as mistral-common does; `mixtral-hf` encodes one string, as the Hugging Face
template of 2023 does. They differ in the first token after BOS, EOS and "[/INST]"; docs/chat.md says which to use.
"""

import hashlib
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from winnow.checkpoints import has_tokenizer
from winnow.errors import ChatError, ControlTokenError, ModelError, UsageError, first_line
from winnow.models import check_model_path, load_failure
from winnow.records import Message
from winnow.run_config import PolicyConfig

TEMPLATE_DIR = Path(__file__).parent / "templates"
PIECEWISE_TEMPLATES = frozenset({"mixtral"})


@dataclass(frozen=True)
class Rendered:
    """A conversation as tokens: `loss_mask[i]` says whether token i belongs to an assistant turn (text through EOS).

    `loss_spans` are the same turns as (start, end) in characters of `text`.
    """

    text: str
    loss_spans: list[tuple[int, int]]
    token_ids: list[int]
    loss_mask: list[bool]


@dataclass(frozen=True)
class ScoredPair:
    """A prompt and one completion as tokens; `has_eos` when the completion's last token closes the turn."""

    prompt_ids: list[int]
    completion_ids: list[int]
    has_eos: bool


def template_source(name: str, tokenizer: Any) -> str:
    """The jinja text of a template: a built-in name, "tokenizer" for the tokenizer's own, or a path to a file."""
    if name == "tokenizer":
        if not tokenizer.chat_template:
            raise ModelError(
                f"chat_template: tokenizer was asked for, but {tokenizer.name_or_path} has none; "
                f"name one of {', '.join(built_in_templates())} or a .jinja file"
            )
        return str(tokenizer.chat_template)
    path = TEMPLATE_DIR / f"{name}.jinja" if name in built_in_templates() else Path(name)
    if not path.is_file():
        raise UsageError(
            f"chat_template {name!r} is neither a file nor one of {', '.join(built_in_templates())}, tokenizer"
        )
    return path.read_text()


def built_in_templates() -> list[str]:
    """Names of the templates that come with winnow."""
    return sorted(path.stem for path in TEMPLATE_DIR.glob("*.jinja"))


def check_messages(messages: Sequence[Message], last_role: str) -> None:
    """Raise ChatError unless an optional system message, then user and assistant in turn, lead to `last_role`."""
    if not messages:
        raise ChatError("a conversation needs at least one message")
    turns = messages[1:] if messages[0].role == "system" else messages
    for index, message in enumerate(turns):
        expected = "user" if index % 2 == 0 else "assistant"
        if message.role != expected:
            raise ChatError(f"turn {index + 1} should be {expected}, is {message.role}")
    if not turns or turns[-1].role != last_role:
        raise ChatError(f"the last message should be {last_role}, is {messages[-1].role}")


class Chat:
    """A tokenizer with a template: the one renderer of conversations.

    `system_prompt` is put before a conversation that brings no system message of its own.
    """

    def __init__(self, tokenizer: Any, template: str = "lab", system_prompt: str | None = None) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.system_prompt = system_prompt
        self._source = template_source(template, tokenizer)
        self._is_piecewise = template in PIECEWISE_TEMPLATES

    @cached_property
    def template_hash(self) -> str:
        """Sixteen hex digits of the SHA-256 of the template: name, text, system prompt, BOS and EOS."""
        special = [str(self.tokenizer.bos_token), str(self.tokenizer.eos_token)]
        identity = "\0".join([self.template, self._source, self.system_prompt or "", *special])
        return hashlib.sha256(identity.encode()).hexdigest()[:16]

    @property
    def eos_token_id(self) -> int:
        """The token that closes an assistant turn."""
        return int(self.tokenizer.eos_token_id)

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """The text of a conversation up to and including the header of the assistant turn to come."""
        check_messages(messages, last_role="user")
        return self._render(self._with_system(messages), add_generation_prompt=True)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """The token ids of `prompt_text`, with exactly one BOS if the tokenizer has one."""
        check_messages(messages, last_role="user")
        return self._rendered(self._with_system(messages), add_generation_prompt=True).token_ids

    def conversation(self, messages: Sequence[Message]) -> Rendered:
        """A whole conversation, ending in an assistant turn, with its loss mask."""
        check_messages(messages, last_role="assistant")
        return self._rendered(self._with_system(messages), add_generation_prompt=False)

    def scored_pair(self, messages: Sequence[Message], completion: str) -> ScoredPair:
        """A prompt and a completion as tokens. Raises ChatError for a control token in either."""
        pair = self.scored_pairs(messages, [completion])[0]
        if isinstance(pair, ChatError):
            raise pair
        return pair

    def scored_pairs(self, messages: Sequence[Message], completions: Sequence[str]) -> list[ScoredPair | ChatError]:
        """A prompt and each of its completions as tokens, as `conversation` gives them; the prompt is rendered once.

        A completion that cannot be rendered is a ChatError in its place. Raises ChatError for the prompt's own errors.
        """
        check_messages(messages, last_role="user")
        messages = self._with_system(messages)
        prompt = self._rendered(messages, add_generation_prompt=True)
        turns = [self._turn(messages, prompt.text, completion) for completion in completions]
        rendered = iter(self._turn_ids(prompt, [turn for turn in turns if not isinstance(turn, ChatError)]))
        return [turn if isinstance(turn, ChatError) else next(rendered) for turn in turns]

    def unchecked_text(self, messages: Sequence[Message]) -> str:
        """What the template makes of messages as they are: no system prompt of ours, no generation prompt, no checks.

        To follow other software's rendering; a control token in a message is read as structure. Raises ChatError.
        """
        return self._template(messages, add_generation_prompt=False)

    def encode(self, text: str) -> list[int]:
        """The token ids of a text as the tokenizer gives them, without a BOS or EOS that the text does not hold."""
        return self._encode_all([text])[0]

    def _with_system(self, messages: Sequence[Message]) -> list[Message]:
        if self.system_prompt and messages[0].role != "system":
            return [Message(role="system", content=self.system_prompt), *messages]
        return list(messages)

    def _render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        self._refuse_control_tokens(messages)
        return self._template(messages, add_generation_prompt=add_generation_prompt)

    def _template(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        from jinja2 import TemplateError

        try:
            text = self.tokenizer.apply_chat_template(
                [{"role": message.role, "content": message.content} for message in messages],
                chat_template=self._source,
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
            )
        except TemplateError as error:
            raise ChatError(f"template {self.template} does not take this conversation: {first_line(error)}") from error
        return str(text)

    def _rendered(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> Rendered:
        text = self._render(messages, add_generation_prompt=add_generation_prompt)
        spans = self._assistant_spans(messages, text)
        cuts = sorted({0, len(text), *(border for span in spans for border in span)})
        token_ids: list[int] = []
        loss_mask: list[bool] = []
        for start, end in itertools.pairwise(cuts):
            piece = self._next_ids(text, start, end, token_ids)
            token_ids += piece
            loss_mask += [(start, end) in spans] * len(piece)
        self._check_bos(token_ids)
        return Rendered(text, spans, token_ids, loss_mask)

    def _assistant_spans(self, messages: Sequence[Message], text: str) -> list[tuple[int, int]]:
        """Character spans of the assistant turns: from the end of their prompt to the end of their EOS."""
        spans = []
        for index, message in enumerate(messages):
            if message.role != "assistant":
                continue
            start = self._render(messages[:index], add_generation_prompt=True)
            end = self._render(messages[: index + 1], add_generation_prompt=False)
            end = end[: self._turn_end(end, len(start))]
            if not (text.startswith(start) and text.startswith(end)):
                raise self._unstable_beginning
            spans.append((len(start), len(end)))
        return spans

    def _turn_end(self, text: str, start: int) -> int:
        """Where the assistant turn that begins at `start`, the last of `text`, ends: after its EOS, if it has one."""
        eos = text.rfind(self.tokenizer.eos_token, start)
        return eos + len(self.tokenizer.eos_token) if eos >= 0 else len(text)

    @property
    def _unstable_beginning(self) -> ChatError:
        return ChatError(f"template {self.template} renders a conversation otherwise than its beginning")

    def _turn(self, messages: Sequence[Message], prompt: str, completion: str) -> tuple[str, int] | ChatError:
        """The text of the prompt's messages with a completion, and where the assistant turn ends in it; or an error."""
        turn = Message(role="assistant", content=completion)
        try:
            self._refuse_control_tokens([turn])
            text = self._template([*messages, turn], add_generation_prompt=False)
        except ChatError as error:
            return error
        if not text.startswith(prompt):
            return self._unstable_beginning
        end = self._turn_end(text, len(prompt))
        body = text[len(prompt) : end].removesuffix(self.tokenizer.eos_token)
        # The white space around an answer is the template's affair: many trim it.
        return (text, end) if body.strip() == completion.strip() else self._changed_completion

    @property
    def _changed_completion(self) -> ChatError:
        return ChatError(
            f"template {self.template} changes the completion (some add reasoning, or take it out); send token ids, or "
            "take a .jinja template that leaves answers as they are"
        )

    def _turn_ids(self, prompt: Rendered, turns: Sequence[tuple[str, int]]) -> list[ScoredPair | ChatError]:
        """The tokens of conversations that begin with `prompt`: as `_rendered` cuts them, all encoded in one call."""
        ids = self._pieces_after(prompt, [text[:end] for text, end in turns])
        closings = {text[end:] for text, end in turns}
        closing_ids = dict(zip(closings, self._encode_all(list(closings)), strict=True))
        pairs: list[ScoredPair | ChatError] = []
        for (text, end), completion_ids in zip(turns, ids, strict=True):
            try:
                self._check_bos([*prompt.token_ids, *completion_ids, *closing_ids[text[end:]]])
            except ChatError as error:
                pairs.append(error)
            else:
                has_eos = completion_ids[-1:] == [self.eos_token_id]
                pairs.append(ScoredPair(prompt.token_ids, completion_ids, has_eos))
        return pairs

    def _pieces_after(self, prompt: Rendered, texts: Sequence[str]) -> list[list[int]]:
        """What `_next_ids` gives for the rest of each text after the prompt's, which all of them begin with."""
        start = len(prompt.text)
        if self._is_piecewise:
            return self._encode_all([self._dummy_prefix + text[start:] for text in texts])
        anchor, before = self._anchor(prompt)
        longer = self._encode_all([text[anchor:] for text in texts])
        return [
            ids[len(before) :] if ids[: len(before)] == before else self.encode(text[start:])
            for text, ids in zip(texts, longer, strict=True)
        ]

    def _anchor(self, prompt: Rendered) -> tuple[int, list[int]]:
        """Where in the prompt's text encoding may begin for what follows it, and the prompt's ids from there.

        A tokenizer splits a text at its special tokens and encodes the parts by themselves, so the last one in the
        prompt will do: what stands before it changes nothing after it. Without one, all of the prompt is encoded.
        """
        found = [match.start() for match in self._split_tokens.finditer(prompt.text)]
        if not found or self.encode(prompt.text) != prompt.token_ids:
            return 0, prompt.token_ids
        before = self.encode(prompt.text[found[-1] :])
        is_suffix = prompt.token_ids[len(prompt.token_ids) - len(before) :] == before
        return (found[-1], before) if is_suffix else (0, prompt.token_ids)

    def _next_ids(self, text: str, start: int, end: int, before: list[int]) -> list[int]:
        """The ids of text[start:end] given the ids before it, cut where a merge would cross the border."""
        if not self._is_piecewise:
            longer = self.encode(text[:end])
            if longer[: len(before)] == before:
                return longer[len(before) :]
            return self.encode(text[start:end])
        bos = self.tokenizer.bos_token or ""
        if start == 0 and bos and text.startswith(bos):
            return [int(self.tokenizer.bos_token_id), *self.encode(self._dummy_prefix + text[len(bos) : end])]
        return self.encode(self._dummy_prefix + text[start:end])

    @cached_property
    def _dummy_prefix(self) -> str:
        """The space that SentencePiece puts before a text, where a fast tokenizer with its vocabulary does not."""
        vocabulary = self.tokenizer.get_vocab()
        adds_none = "\u2581x" in vocabulary and self.encode("x") != [vocabulary["\u2581x"]]
        return " " if adds_none else ""

    def _encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text: in one call, which a fast tokenizer spreads over the cores."""
        encoded = self.tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False) if texts else {}
        return [list(ids) for ids in encoded.get("input_ids", [])]

    def _check_bos(self, token_ids: list[int]) -> None:
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        if bos is None or bos == eos:
            return
        if token_ids[:1] != [bos] or bos in token_ids[1:]:
            raise ChatError(
                f"template {self.template} should give exactly one BOS, at the start; it gives {token_ids[:4]}..."
            )

    @cached_property
    def _control_tokens(self) -> re.Pattern[str]:
        added = {token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        tokens = sorted({*added, *self.tokenizer.all_special_tokens}, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, tokens)) or r"(?!)")

    @cached_property
    def _split_tokens(self) -> re.Pattern[str]:
        """Special tokens at which a fast tokenizer splits every text, whatever stands around them."""
        added = self.tokenizer.added_tokens_decoder.values() if self.tokenizer.is_fast else []
        raw = [token for token in added if not token.normalized]
        if any(token.lstrip or token.rstrip or token.single_word for token in raw):
            return re.compile(r"(?!)")
        tokens = sorted((token.content for token in raw), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, tokens)) or r"(?!)")

    def _refuse_control_tokens(self, messages: Sequence[Message]) -> None:
        for message in messages:
            if found := self._control_tokens.search(message.content):
                raise ControlTokenError(
                    f"the {message.role} message holds the control token {found[0]!r}; take it out of the text"
                )


def load_tokenizer(model: str, eos_token: str | None = None, added_tokens: Sequence[str] = ()) -> Any:
    """The tokenizer of a local model folder or hub id. Raises ModelError when there is none.

    `eos_token` and `added_tokens` become special tokens where the tokenizer does not have them yet: a base model learns
    the LAB form's headers in SFT, and its embedding grows with them.
    """
    from transformers import AutoTokenizer

    check_model_path(model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        reason = load_failure(model, error)
        if Path(model).is_dir():
            is_there = has_tokenizer(Path(model))
            reason = f"its tokenizer's files cannot be read ({reason})" if is_there else "it holds no tokenizer's files"
            reason += "; give a folder that holds a model and its tokenizer"
        raise ModelError(f"no tokenizer could be loaded from {model!r}: {reason}") from error
    if eos_token is not None and tokenizer.eos_token != eos_token:
        tokenizer.add_special_tokens({"eos_token": eos_token})
    missing = [token for token in added_tokens if token not in tokenizer.get_vocab()]
    tokenizer.add_tokens(missing, special_tokens=True)
    return tokenizer


def load_chat(policy: PolicyConfig, model: str) -> Chat:
    """The renderer of a policy's conversations, with the tokenizer of one of its checkpoints."""
    tokenizer = load_tokenizer(model, policy.eos_token, policy.added_tokens)
    return Chat(tokenizer, policy.chat_template, policy.system_prompt)
