"""Token ids of a sampled completion: their end, their text, and the control tokens that they may not hold.

    token_ids   54 22 17 1     as sampled, through the first id of `Chat.stop_ids`
    content     54 22 17       without that id
    text        decode(content), control tokens included

Most texts give their ids back. Some do not: bytes that are not UTF-8 decode to U+FFFD, a text may be cut into other
tokens than those that were sampled, and a template may change it. Such completions are scored and trained on as ids.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any


def cut_after_stop(token_ids: Sequence[int], stop_ids: Collection[int]) -> list[int]:
    """Return the ids through the first stop id; all of them without one.

    >>> cut_after_stop([54, 1, 2, 2], {1, 9})
    [54, 1]
    """
    for index, token_id in enumerate(token_ids):
        if token_id in stop_ids:
            return list(token_ids[: index + 1])
    return list(token_ids)


def without_stop(token_ids: Sequence[int], stop_ids: Collection[int]) -> list[int]:
    """Return the ids without a stop id at their end."""
    if token_ids and token_ids[-1] in stop_ids:
        return list(token_ids[:-1])
    return list(token_ids)


def decode(tokenizer: Any, token_ids: Sequence[int]) -> str:
    """Return the text of ids, control tokens included. Bytes that are not UTF-8 become U+FFFD."""
    return str(tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def control_token_fault(token_ids: Sequence[int], end_ids: Collection[int], control_tokens: Mapping[int, str]) -> str:
    """Return the error of a completion with a control token besides an end id at its end; an empty text without one.

    `control_tokens` holds the tokenizer's control tokens by id.
    """
    last = len(token_ids) - 1
    position = next((index for index, token_id in enumerate(token_ids) if token_id in control_tokens), last + 1)
    if position > last or (position == last and token_ids[position] in end_ids):
        return ""
    end = "before its end; take it out, or send the ids before it"
    if token_ids[position] in end_ids:
        end = "before its end; cut the ids after it"
        if token_ids[position + 1] in control_tokens:
            position += 1
            end = "after its end; cut the ids after the first EOS"
    token_id = token_ids[position]
    return f"the completion's token ids hold {control_tokens[token_id]!r} (id {token_id}) at position {position}, {end}"
