"""OpenRLHF's texts -> a conversation and its completion. Pure.

    query  = decode(prompt tokens + completion tokens), special tokens included
    prompt = the rendered prompt it was made from

    completion = query after prompt, without what closes it

Decoding may put one special token's text before the prompt (BOS); nothing else may differ. With a chat template, the
user's turn is what stands between a prefix and a suffix that the caller names.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reward_server.groups import CompletionText
from winnow.errors import UsageError

Messages = Sequence[Mapping[str, str]]
SOURCES = ("prompts", "labels")
# Like <s>, <|begin_of_text|>, [BOS]; some tokenizers decode a space after it.
SPECIAL = re.compile(r"(<[^<>\s]+>|\[[A-Z]+\]) ?")


@dataclass(frozen=True)
class PromptForm:
    """How the policy renders a prompt of one user turn, and what closes a completion."""

    prefix: str = ""
    suffix: str = ""
    ends: tuple[str, ...] = ()
    """Texts of which one closes a finished completion; none: every completion counts as finished."""
    source: str = "prompts"
    """The field with the prompt: `prompts`, or `labels` where the data set's label is a list of messages."""

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise UsageError(f"prompt_from {self.source!r} is none of {', '.join(SOURCES)}")


def sample_of(form: PromptForm, query: str, prompt: str, label: Any) -> tuple[Messages, CompletionText]:
    """The prompt and the completion of one sample. Raises UsageError."""
    messages = _labelled(label) if form.source == "labels" else [{"role": "user", "content": _user_turn(form, prompt)}]
    return messages, _completion(form, query, prompt)


def _user_turn(form: PromptForm, prompt: str) -> str:
    start, end = _end_of(form.prefix, prompt), len(prompt) - len(form.suffix)
    if start is None or not prompt.endswith(form.suffix) or end < start:
        raise UsageError(
            f"the prompt does not begin with {form.prefix!r} and end in {form.suffix!r}; set --prompt-prefix and "
            "--prompt-suffix to the policy's chat template"
        )
    return prompt[start:end]


def _completion(form: PromptForm, query: str, prompt: str) -> CompletionText:
    start = _end_of(prompt, query) if prompt else None
    if start is None:
        raise UsageError(
            "the query does not begin with its prompt; the policy's tokenizer changes texts when it decodes them"
        )
    completion = query[start:]
    for end in form.ends:
        if completion.endswith(end):
            return CompletionText(completion.removesuffix(end))
    return CompletionText(completion, is_finished=not form.ends)


def _end_of(beginning: str, text: str) -> int | None:
    """Where a text's beginning ends, which one special token's text may precede; None: it begins otherwise."""
    special = SPECIAL.match(text)
    starts = (0, special.end(1), special.end()) if special else (0,)
    return next((start + len(beginning) for start in starts if text.startswith(beginning, start)), None)


def _labelled(label: Any) -> Messages:
    is_list = isinstance(label, list) and bool(label)
    if is_list and all(isinstance(item, dict) and {"role", "content"} <= item.keys() for item in label):
        return [{"role": item["role"], "content": item["content"]} for item in label]
    raise UsageError('with --prompt-from labels each label should be a list of {"role", "content"} messages')
