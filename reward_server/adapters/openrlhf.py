"""OpenRLHF's texts -> a conversation and its completion. Pure.

    query  = decode(prompt tokens + completion tokens), special tokens included
    prompt = the rendered prompt that the query was made from

    completion = the query after the prompt, without the text of EOS

Decoding may put one special token's text before the prompt (BOS); nothing else may differ. If the policy has a chat
template, the user's turn is the text between a prefix and a suffix, which the user sets.

    prompt      <|user|>What is 2 + 3?<|assistant|>                   prefix <|user|>, suffix <|assistant|>
    query       <s><|user|>What is 2 + 3?<|assistant|>It is 5.</s>    EOS </s>
    user turn   What is 2 + 3?
    completion  It is 5.
"""

import re
from dataclasses import dataclass
from typing import Any

from reward_server.client import CompletionText, UsageError
from winnow.conversations import trainer_messages

SOURCES = ("prompts", "labels")
# Like <s>, <|begin_of_text|>, [BOS]; some tokenizers decode a space after it.
SPECIAL_TOKEN = re.compile(r"(<[^<>\s]+>|\[[A-Z]+\]) ?")


@dataclass(frozen=True)
class PromptForm:
    """The form in which the policy renders a prompt of one user turn and closes a completion.

        prefix, suffix   texts before and after the user's turn
        eos_texts        texts that close a finished completion; none: every completion counts as finished
        source           field with the prompt: "prompts"; or "labels", if the data set's label is a list of messages

    Raises UsageError for another source.
    """

    prefix: str = ""
    suffix: str = ""
    eos_texts: tuple[str, ...] = ()
    source: str = "prompts"

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise UsageError(f"prompt_from {self.source!r} is none of {', '.join(SOURCES)}")


def parse_texts(form: PromptForm, query: str, prompt: str, label: Any) -> tuple[list[dict[str, str]], CompletionText]:
    """Return the messages of a prompt and the completion. Raises UsageError for texts that do not have the form."""
    if form.source == "labels":
        messages = _label_messages(label)
    else:
        messages = trainer_messages(_user_turn(form, prompt), "the prompt")
    return messages, _completion(form, query, prompt)


def _label_messages(label: Any) -> list[dict[str, str]]:
    if not isinstance(label, list):
        raise UsageError('with --prompt-from labels each label should be a list of {"role", "content"} messages')
    return trainer_messages(label, "a label")


def _user_turn(form: PromptForm, prompt: str) -> str:
    """Return the text between the prefix and the suffix. Raises UsageError if the prompt has another form."""
    start = _end_of(form.prefix, prompt)
    end = len(prompt) - len(form.suffix)
    if start is None or end < start or not prompt.endswith(form.suffix):
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
    for eos_text in form.eos_texts:
        if completion.endswith(eos_text):
            return CompletionText(completion.removesuffix(eos_text))
    return CompletionText(completion, is_finished=not form.eos_texts)


def _end_of(beginning: str, text: str) -> int | None:
    """Return the index in `text` at which its `beginning` ends; None if the text does not begin with it.

    The text of one special token may come first, with or without a space after it.
    """
    starts = [0]
    special_token = SPECIAL_TOKEN.match(text)
    if special_token:
        starts += [special_token.end(1), special_token.end()]
    for start in starts:
        if text.startswith(beginning, start):
            return start + len(beginning)
    return None
