"""Rows -> token ids and labels: what the trainer reads, and what was left out of it and why.

    {"messages": [...], "metadata": {...}}  ->  input_ids  <s> <|user|> ... <|assistant|> \\n  Orrel  .  <|endoftext|>
                                                labels      -100 -100        -100         -100 Orrel  .  <|endoftext|>

Labels are the loss mask of `Chat.conversation`: an assistant turn's text through its end-of-sequence token. A row over
`max_tokens` is left out, never cut: half an answer teaches to stop nowhere.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from winnow.chat import Chat
from winnow.errors import ChatError, TrainingError
from winnow.records import Message

IGNORED = -100

Tokens = NDArray[np.int32]


@dataclass
class Encoded:
    """Training rows as tokens; `invalid_reasons` counts the rows that could not be rendered by what was wrong."""

    input_ids: list[Tokens] = field(default_factory=list)
    labels: list[Tokens] = field(default_factory=list)
    num_dropped_long: int = 0
    invalid_reasons: Counter[str] = field(default_factory=Counter)

    @property
    def num_loss_tokens(self) -> int:
        """Tokens that carry loss in one pass over the rows."""
        return sum(int((labels != IGNORED).sum()) for labels in self.labels)

    def identity(self) -> str:
        """Sixteen hex digits of the SHA-256 of all tokens and labels, in order."""
        sha = hashlib.sha256()
        for input_ids, labels in zip(self.input_ids, self.labels, strict=True):
            sha.update(len(input_ids).to_bytes(8, "little") + input_ids.tobytes() + labels.tobytes())
        return sha.hexdigest()[:16]


def encode(
    rows: Sequence[Mapping[str, Any]], chat: Chat, max_tokens: int, *, is_last_turn_only: bool = False
) -> Encoded:
    """Render rows for training. Raises TrainingError when a row has no loss, or when no row is left."""
    encoded = Encoded()
    for number, row in enumerate(rows, start=1):
        try:
            rendered = chat.conversation(parse_messages(row))
        except ChatError as error:
            encoded.invalid_reasons[str(error)] += 1
            continue
        mask = last_turn(rendered.loss_mask) if is_last_turn_only else rendered.loss_mask
        _add(encoded, rendered.token_ids, mask, number, max_tokens)
    if not encoded.input_ids:
        raise TrainingError(_nothing_left(encoded, len(rows), max_tokens))
    return encoded


def parse_messages(row: Mapping[str, Any]) -> list[Message]:
    """The messages of a row. Raises ChatError when they are no list of {role, content}."""
    messages = row.get("messages")
    if not isinstance(messages, list | tuple):
        raise ChatError("the row has no list of messages")
    try:
        return [Message.model_validate(message) for message in messages]
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "message"
        raise ChatError(f"{where}: {problem['msg']}") from None


def last_turn(loss_mask: Sequence[bool]) -> list[bool]:
    """The mask without all assistant turns but the last.

    >>> last_turn([False, True, True, False, True])
    [False, False, False, False, True]
    """
    end = max((index for index, is_in in enumerate(loss_mask) if is_in), default=-1)
    start = end
    while start >= 0 and loss_mask[start]:
        start -= 1
    return [start < index <= end for index in range(len(loss_mask))]


def _add(encoded: Encoded, token_ids: Sequence[int], mask: Sequence[bool], number: int, max_tokens: int) -> None:
    if not any(mask):
        raise TrainingError(f"row {number} has no token that carries loss; check the chat template's assistant turns")
    if len(token_ids) > max_tokens:
        encoded.num_dropped_long += 1
        return
    input_ids = np.array(token_ids, dtype=np.int32)
    encoded.input_ids.append(input_ids)
    encoded.labels.append(np.where(mask, input_ids, IGNORED).astype(np.int32))


def _nothing_left(encoded: Encoded, num_rows: int, max_tokens: int) -> str:
    reasons = "; ".join(f"{count} x {reason}" for reason, count in encoded.invalid_reasons.most_common(3))
    return (
        f"nothing to train on: of {num_rows} rows {encoded.num_dropped_long} are longer than max_tokens {max_tokens} "
        f"and {encoded.invalid_reasons.total()} cannot be rendered{f' ({reasons})' if reasons else ''}"
    )
