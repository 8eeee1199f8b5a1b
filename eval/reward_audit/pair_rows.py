"""One row of a file of preference pairs -> its pair. Pure.

    {"prompt", "chosen", "rejected"}                  texts: RewardBench, and TRL's preference rows with a text prompt
    {"prompt" or "messages": [...], "chosen", ...}    a conversation up to the assistant turn, and two texts
    {"prompt": [...], "chosen": [...], ...}           TRL: both are the messages that follow the prompt
    {"chosen": [...], "rejected": [...]}              TRL: both are whole conversations with the same prompt
    {"input", "output_1", "output_2", "label"}        LLMBar: the output of the number `label` is the chosen one

A pair is two last turns of the assistant after the same conversation. Any other difference between the two sides is an
error: the reward compares completions of one prompt only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from winnow.conversations import ROLES, checked_messages, row_messages, trainer_messages
from winnow.errors import InputError, UsageError
from winnow.records import Message
from winnow.rows import kind_of

LLMBAR_KEYS = ("input", "output_1", "output_2", "label")
SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class PairTexts:
    """A prompt with the completion that is preferred and the one that is not."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str


def pair_of(row: dict[str, Any], location: str) -> PairTexts:
    """Return the pair of a row. Raises InputError, which begins with `location`.

    >>> pair_of({"input": "2 + 3?", "output_1": "6", "output_2": "5", "label": 2}, "line 1").chosen
    '5'
    """
    if not any(side in row for side in SIDES) and any(key in row for key in LLMBAR_KEYS):
        return _llmbar_pair(row, location)
    missing = [side for side in SIDES if row.get(side) is None]
    if missing:
        raise InputError(
            f"{location}: a pair needs 'prompt', 'chosen' and 'rejected', or LLMBar's "
            f"{', '.join(map(repr, LLMBAR_KEYS))}; {missing[0]!r} is missing, it has {sorted(row)}"
        )
    are_texts = [isinstance(row[side], str) for side in SIDES]
    if all(are_texts):
        return PairTexts(_text_prompt(row, location), row["chosen"], row["rejected"])
    if any(are_texts):
        kinds = " and ".join(f"{side!r} is {kind_of(row[side])}" for side in SIDES)
        raise InputError(f"{location}: {kinds}; both should be texts, or both lists of messages")
    return _conversation_pair(row, location)


def _llmbar_pair(row: dict[str, Any], location: str) -> PairTexts:
    for key in LLMBAR_KEYS:
        if key not in row:
            raise InputError(f"{location}: {key!r} is missing from a row of LLMBar; it has {sorted(row)}")
    for key in ("input", "output_1", "output_2"):
        if not isinstance(row[key], str):
            raise InputError(f"{location}: {key!r} is {kind_of(row[key])}, should be a text")
    if isinstance(row["label"], bool) or row["label"] not in (1, 2):
        raise InputError(f"{location}: label is {row['label']!r}; it should be 1 or 2, the number of the better output")
    outputs = (row["output_1"], row["output_2"])
    prompt = (Message(role="user", content=row["input"]),)
    return PairTexts(prompt, outputs[row["label"] - 1], outputs[2 - row["label"]])


def _text_prompt(row: dict[str, Any], location: str) -> tuple[Message, ...]:
    """Return the prompt of a row whose completions are texts. Raises InputError."""
    if isinstance(row.get("prompt"), str) or isinstance(row.get("messages"), list):
        return checked_messages(row_messages(row, location), location)
    if row.get("prompt") is None:
        raise InputError(
            f"{location}: 'prompt' is missing; chosen and rejected are texts, so the prompt is needed, as a text or a "
            "list of messages"
        )
    return checked_messages(_messages(row["prompt"], f"{location}: prompt"), location)


def _conversation_pair(row: dict[str, Any], location: str) -> PairTexts:
    """Return the pair of a row whose sides are lists of messages. Raises InputError."""
    start: tuple[Message, ...] = ()
    if row.get("prompt") is not None:
        start = _messages(row["prompt"], f"{location}: prompt")
    conversations: list[tuple[Message, ...]] = []
    for side in SIDES:
        conversations.append(_whole_conversation(start, row[side], f"{location}: {side}"))
    chosen, rejected = conversations
    if chosen[:-1] != rejected[:-1]:
        raise InputError(
            f"{location}: chosen and rejected answer different conversations; they may differ in the last turn only, "
            "because rewards compare within a prompt only"
        )
    return PairTexts(checked_messages(chosen[:-1], location), chosen[-1].content, rejected[-1].content)


def _whole_conversation(start: Sequence[Message], value: Any, location: str) -> tuple[Message, ...]:
    """Return a side's conversation from its first turn. A side either follows the prompt or repeats it."""
    messages = _messages(value, location)
    if messages[-1].role != "assistant":
        raise InputError(f"{location}: the last message should be the assistant's, is the {messages[-1].role}'s")
    if messages[0].role == "assistant":
        return (*start, *messages)
    if _without_system(messages)[: len(_without_system(start))] != _without_system(start):
        raise InputError(f"{location} is a whole conversation that does not begin with 'prompt'; leave out 'prompt'")
    return messages


def _without_system(messages: Sequence[Message]) -> tuple[Message, ...]:
    return tuple(message for message in messages if message.role != "system")


def _messages(value: Any, location: str) -> tuple[Message, ...]:
    """Return a list of messages, or a text as a user's turn; keys besides role and content are left out."""
    try:
        turns = trainer_messages(value, location)
    except UsageError as error:
        raise InputError(str(error)) from None
    for index, turn in enumerate(turns):
        if turn["role"] not in ROLES:
            raise InputError(f"{location}[{index}].role {turn['role']!r} is none of {', '.join(ROLES)}")
    return tuple(Message.model_validate(turn) for turn in turns)
