"""Parsing of messages: from the rows of data files, and from the prompts that trainers hand over.

{"messages": [{"role": "user", "content": "..."}]}     or     {"prompt": "..."}
"""

import reprlib
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, get_args

from winnow.chat import check_messages
from winnow.errors import ChatError, InputError, UsageError
from winnow.records import Message, Role
from winnow.rows import kind_of

ROLES = get_args(Role)


def parse_conversation(row: dict[str, Any], location: str) -> tuple[Message, ...]:
    """Return the messages of a row that has its completions in another field. The last message must be the user's.

    A final assistant message is refused, not removed. Raises InputError, which begins with `location`.
    """
    if row.get("messages") is not None and row.get("prompt") is not None:
        raise InputError(f"{location}: has both 'messages' and 'prompt'; leave one of them out")
    messages = row_messages(row, location)
    if messages and messages[-1].role == "assistant":
        raise InputError(
            f"{location}: messages[{len(messages) - 1}] is the assistant's, where the last one should be the user's; "
            "move it to 'completions' if it is to be scored, else take it out"
        )
    return checked_messages(messages, location)


def row_messages(row: dict[str, Any], location: str) -> tuple[Message, ...]:
    """Return the messages of a row, in any order of roles. Raises InputError."""
    if isinstance(row.get("messages"), list):
        return tuple(_message(value, f"{location}: messages[{index}]") for index, value in enumerate(row["messages"]))
    if isinstance(row.get("prompt"), str):
        return (Message(role="user", content=row["prompt"]),)
    faults = [f"{key!r} is {kind_of(row[key])}" for key in ("messages", "prompt") if key in row]
    if not faults:
        faults = [f"it has {sorted(row)}"]
    raise InputError(f"{location}: a prompt row needs 'messages' (a list) or 'prompt' (a text); {' and '.join(faults)}")


def checked_messages(messages: tuple[Message, ...], location: str) -> tuple[Message, ...]:
    """Return the messages. Raises InputError unless their roles alternate and the last one is the user's."""
    try:
        check_messages(messages, last_role="user")
    except ChatError as error:
        raise InputError(f"{location}: {error}") from None
    return messages


def trainer_messages(prompt: Any, name: str) -> list[dict[str, str]]:
    """Return the prompt that a trainer hands over, a text or a sequence of messages, as messages.

    A text is one user turn. Keys besides role and content are left out. Roles and their order are not checked here: the
    reward server checks them, and gives the completions of an invalid conversation a status. Raises UsageError, which
    calls the prompt by `name`, for a prompt that is neither, and for a message without role or content.

    >>> trainer_messages("What is 2 + 3?", "prompt")
    [{'role': 'user', 'content': 'What is 2 + 3?'}]
    """
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    messages = _listed_messages(prompt, name)
    try:
        for index, message in enumerate(messages):
            location = f"{name}[{index}]"
            _check_is_message(message, location)
            _check_is_text(message, "role", location)
            _check_is_text(message, "content", location)
    except InputError as error:
        raise UsageError(f"{error}; fix the data set") from None
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def _listed_messages(prompt: Any, name: str) -> list[Any]:
    """Return the items of a list, or of the array that Parquet makes of one. Raises UsageError for anything else."""
    expected = f"{name} should be a text or a list of messages with role and content"
    messages = None
    if not isinstance(prompt, bytes | Mapping):
        with suppress(TypeError):
            messages = list(prompt)
    if messages is None:
        raise UsageError(f"{expected}, is of type {type(prompt).__name__}; fix the data set")
    if not messages:
        raise UsageError(f"{expected}, is empty; fix the data set")
    return messages


def _check_is_message(value: Any, location: str) -> None:
    """Raise InputError unless the value is an object with role and content."""
    if not isinstance(value, Mapping):
        raise InputError(f"{location} is {kind_of(value)}, should be an object with role and content")
    for key in Message.model_fields:
        if key not in value:
            raise InputError(f"{location}: {key} is missing")


def _check_is_text(message: Mapping[str, Any], key: str, location: str) -> None:
    if not isinstance(message[key], str):
        raise InputError(f"{location}.{key} is {kind_of(message[key])}, should be a text")


def _message(value: Any, location: str) -> Message:
    """Convert a message of a row. Raises InputError, which names the message's `location` and its fault."""
    _check_is_message(value, location)
    if value["role"] not in ROLES:
        raise InputError(f"{location}.role {reprlib.repr(value['role'])} is none of {', '.join(ROLES)}")
    _check_is_text(value, "content", location)
    unknown_keys = sorted(value.keys() - Message.model_fields.keys())
    if unknown_keys:
        raise InputError(
            f"{location} has {', '.join(map(repr, unknown_keys))}, where a message has role and content only"
        )
    return Message(**value)
