"""A row or request of some outer format -> messages. The only place that decides what a conversation looks like.

{"messages": [{"role": "user", "content": "..."}]}     or     {"prompt": "..."}
"""

import reprlib
from typing import Any, get_args

from winnow.chat import check_messages
from winnow.errors import ChatError, InputError
from winnow.records import Message, Role
from winnow.rows import kind_of

ROLES = get_args(Role)


def parse_conversation(row: dict[str, Any], where: str) -> tuple[Message, ...]:
    """The messages of a row whose answers stand beside them; so one that ends in an answer is refused, not cut."""
    if all(row.get(key) is not None for key in ("messages", "prompt")):
        raise InputError(f"{where}: has both 'messages' and 'prompt'; leave one of them out")
    messages = row_messages(row, where)
    if messages and messages[-1].role == "assistant":
        raise InputError(
            f"{where}: messages[{len(messages) - 1}] is the assistant's, where the last one should be the user's; move "
            "it to 'completions' if it is to be scored, else take it out"
        )
    return checked_messages(messages, where)


def row_messages(row: dict[str, Any], where: str) -> tuple[Message, ...]:
    """The messages of a row, whatever their order. Raises InputError."""
    if isinstance(row.get("messages"), list):
        return tuple(_message(one, f"{where}: messages[{index}]") for index, one in enumerate(row["messages"]))
    if isinstance(row.get("prompt"), str):
        return (Message(role="user", content=row["prompt"]),)
    given = [f"{key!r} is {kind_of(row[key])}" for key in ("messages", "prompt") if key in row]
    raise InputError(
        f"{where}: a prompt row needs 'messages' (a list) or 'prompt' (a text); "
        f"{' and '.join(given) or f'it has {sorted(row)}'}"
    )


def _message(value: Any, place: str) -> Message:
    """A message as it stands in a row. Raises InputError for what is none, its `place` and its fault named."""
    if not isinstance(value, dict):
        raise InputError(f"{place} is {kind_of(value)}, should be an object with role and content")
    for key in Message.model_fields:
        if key not in value:
            raise InputError(f"{place}: {key} is missing")
    if value["role"] not in ROLES:
        raise InputError(f"{place}.role {reprlib.repr(value['role'])} is none of {', '.join(ROLES)}")
    if not isinstance(value["content"], str):
        raise InputError(f"{place}.content is {kind_of(value['content'])}, should be a text")
    if more := sorted(value.keys() - Message.model_fields.keys()):
        raise InputError(f"{place} has {', '.join(map(repr, more))}, where a message has role and content only")
    return Message(**value)


def checked_messages(messages: tuple[Message, ...], where: str) -> tuple[Message, ...]:
    """The messages, in turn up to a user's. Raises InputError."""
    try:
        check_messages(messages, last_role="user")
    except ChatError as error:
        raise InputError(f"{where}: {error}") from None
    return messages
