"""Rows -> token ids and labels for the trainer, and counts of the rows that are left out.

    {"messages": [...], "metadata": {...}}  ->  input_ids  <s> <|user|> ... <|assistant|> \\n  Orrel  .  <|endoftext|>
                                                labels      -100 -100        -100         -100 Orrel  .  <|endoftext|>

Labels are the loss mask of `Chat.conversation`: the text of each assistant turn and its end-of-sequence token. A row
longer than `max_tokens` is left out, never cut: half an answer would teach the model to stop anywhere.

A selected completion whose text does not give its sampled ids back has these in its metadata:

    {"messages": [...], "metadata": {"completion_ids": [...], "tokenizer_hash": "..."}}
        ->  input_ids  the prompt's ids, then the sampled ones;  labels  the sampled ones

It is refused if the model has another tokenizer, or if its last message is no longer the text of these ids.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from winnow.chat import Chat, check_messages
from winnow.completion_ids import control_token_fault, decode, without_stop
from winnow.errors import ChatError, ControlTokenError, TrainingError
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
            token_ids, loss_mask = encode_row(row, chat, is_last_turn_only=is_last_turn_only)
        except ChatError as error:
            encoded.invalid_reasons[str(error)] += 1
            continue
        if not any(loss_mask):
            raise TrainingError(
                f"row {row_number} has no token that carries loss; check the chat template's assistant turns"
            )
        if len(token_ids) > max_tokens:
            encoded.num_dropped_long += 1
            continue
        input_ids = np.array(token_ids, dtype=np.int32)
        encoded.input_ids.append(input_ids)
        encoded.labels.append(np.where(loss_mask, input_ids, IGNORED).astype(np.int32))
    if not encoded.input_ids:
        raise TrainingError(_explain_empty(encoded, len(rows), max_tokens))
    return encoded


def encode_row(row: Mapping[str, Any], chat: Chat, *, is_last_turn_only: bool = False) -> tuple[list[int], list[bool]]:
    """Return the tokens of a row and their loss mask. Raises ChatError."""
    messages = parse_messages(row)
    metadata = row.get("metadata") or {}
    if "completion_ids" not in metadata:
        rendered = chat.conversation(messages, is_last_turn_only=is_last_turn_only)
        return rendered.token_ids, rendered.loss_mask
    check_messages(messages, last_role="assistant")
    prompt_ids = chat.prompt_ids(messages[:-1])
    completion_ids = _sampled_turn(metadata, messages[-1].content, chat)
    return prompt_ids + completion_ids, [False] * len(prompt_ids) + [True] * len(completion_ids)


def _sampled_turn(metadata: Mapping[str, Any], text: str, chat: Chat) -> list[int]:
    """Return the ids of a sampled turn, closed by the end of turn. Raises ChatError if they are not those of `text`."""
    if metadata.get("tokenizer_hash") != chat.tokenizer_hash:
        raise ChatError(
            "metadata.completion_ids are of another tokenizer than the model's; train the model that sampled them, or "
            "remove completion_ids to train on the text"
        )
    token_ids = metadata["completion_ids"]
    vocab_size = len(chat.tokenizer)
    if not isinstance(token_ids, list) or not all(type(item) is int and 0 <= item < vocab_size for item in token_ids):
        raise ChatError("metadata.completion_ids should be a list of token ids; remove it to train on the text")
    fault = control_token_fault(token_ids, chat.stop_ids, chat.control_tokens)
    if fault:
        raise ControlTokenError(fault)
    content = without_stop(token_ids, chat.stop_ids)
    if decode(chat.tokenizer, content) != text:
        raise ChatError(
            "the last message is not the text of metadata.completion_ids; remove completion_ids to train on the text"
        )
    # Sampling stops at several ids, but the template closes every turn with the same one. A policy that learnt another
    # would write conversations that its template never writes.
    return [*content, chat.end_of_turn_id]


def parse_messages(row: Mapping[str, Any]) -> list[Message]:
    """Return the messages of a row. Raises ChatError if they are not a list of {role, content}, or come with tools."""
    if row.get("tools"):
        raise ChatError("the row has tools, which are not rendered; write them into a message, or take them out")
    messages = row.get("messages")
    if not isinstance(messages, list | tuple):
        raise ChatError("the row has no list of messages")
    try:
        return [Message.model_validate(message) for message in messages]
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"])) or "message"
        raise ChatError(f"{place}: {problem['msg']}") from None


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
