"""Rows -> token ids and labels for the trainer, and counts of the rows that are left out.

    {"messages": [...], "metadata": {...}}  ->  input_ids  <s> <|user|> ... <|assistant|> \\n  Orrel  .  <|endoftext|>
                                                labels      -100 -100        -100         -100 Orrel  .  <|endoftext|>

Labels are the loss mask of `Chat.conversation`: the text of each assistant turn and its end-of-sequence token. A row
longer than `max_tokens` is left out, never cut: half an answer would teach the model to stop anywhere.
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

IGNORED = -100  # PyTorch's cross-entropy skips this label

TokenArray = NDArray[np.int32]


@dataclass
class EncodedRows:
    """Training rows as tokens; `invalid_reasons` counts the rows that could not be rendered, by error."""

    input_ids: list[TokenArray] = field(default_factory=list)
    labels: list[TokenArray] = field(default_factory=list)
    num_dropped_long: int = 0
    invalid_reasons: Counter[str] = field(default_factory=Counter)

    @property
    def num_loss_tokens(self) -> int:
        """Number of tokens that carry loss in one pass over the rows."""
        return sum(int((labels != IGNORED).sum()) for labels in self.labels)

    def content_hash(self) -> str:
        """Return sixteen hex digits of the SHA-256 of all tokens and labels, in order."""
        sha = hashlib.sha256()
        for input_ids, labels in zip(self.input_ids, self.labels, strict=True):
            sha.update(len(input_ids).to_bytes(8, "little") + input_ids.tobytes() + labels.tobytes())
        return sha.hexdigest()[:16]


def encode(
    rows: Sequence[Mapping[str, Any]], chat: Chat, max_tokens: int, *, is_last_turn_only: bool = False
) -> EncodedRows:
    """Render rows for training; rows that are too long or cannot be rendered are counted and left out.

    Raises TrainingError for a row without loss, or if no row is left.
    """
    encoded = EncodedRows()
    for row_number, row in enumerate(rows, start=1):
        try:
            rendered = chat.conversation(parse_messages(row))
        except ChatError as error:
            encoded.invalid_reasons[str(error)] += 1
            continue
        loss_mask = rendered.loss_mask
        if is_last_turn_only:
            loss_mask = keep_last_turn(loss_mask)
        if not any(loss_mask):
            raise TrainingError(
                f"row {row_number} has no token that carries loss; check the chat template's assistant turns"
            )
        if len(rendered.token_ids) > max_tokens:
            encoded.num_dropped_long += 1
            continue
        input_ids = np.array(rendered.token_ids, dtype=np.int32)
        encoded.input_ids.append(input_ids)
        encoded.labels.append(np.where(loss_mask, input_ids, IGNORED).astype(np.int32))
    if not encoded.input_ids:
        raise TrainingError(_explain_empty(encoded, len(rows), max_tokens))
    return encoded


def parse_messages(row: Mapping[str, Any]) -> list[Message]:
    """Return the messages of a row. Raises ChatError if they are not a list of {role, content}."""
    messages = row.get("messages")
    if not isinstance(messages, list | tuple):
        raise ChatError("the row has no list of messages")
    try:
        return [Message.model_validate(message) for message in messages]
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"])) or "message"
        raise ChatError(f"{place}: {problem['msg']}") from None


def keep_last_turn(loss_mask: Sequence[bool]) -> list[bool]:
    """Return the mask of the last assistant turn alone.

    >>> keep_last_turn([False, True, True, False, True])
    [False, False, False, False, True]
    """
    end = len(loss_mask)
    while end > 0 and not loss_mask[end - 1]:
        end -= 1
    start = end
    while start > 0 and loss_mask[start - 1]:
        start -= 1
    return [start <= index < end for index in range(len(loss_mask))]


def _explain_empty(encoded: EncodedRows, num_rows: int, max_tokens: int) -> str:
    """Return the error text for the case that every row was left out."""
    message = (
        f"nothing to train on: of {num_rows} rows {encoded.num_dropped_long} are longer than max_tokens {max_tokens} "
        f"and {encoded.invalid_reasons.total()} cannot be rendered"
    )
    if encoded.invalid_reasons:
        reasons = [f"{count} x {reason}" for reason, count in encoded.invalid_reasons.most_common(3)]
        message += f" ({'; '.join(reasons)})"
    return message
