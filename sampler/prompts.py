"""Prompt pools: files -> prompts without duplicates -> the prompts of a round, uniformly by source.

    {"messages": [{"role": "user", "content": "..."}], "source": "arithmetic"}     or     {"prompt": "..."}

A prompt's id is the hash of its source and messages, never its place or its text as a key: equal texts of two sources
stay two prompts, and equal rows of one source are one.
"""

import random
import reprlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from winnow.chat import check_messages
from winnow.errors import ChatError, InputError
from winnow.records import Message, Prompt, Role, make_prompt
from winnow.rows import kind_of, read_jsonl
from winnow.run_config import PromptFile

ROLES = get_args(Role)


def read_pool(files: Sequence[PromptFile]) -> list[Prompt]:
    """Every prompt of the files once, in file order. Raises InputError naming file and line of a malformed row."""
    pool: dict[str, Prompt] = {}
    for file in files:
        for number, row in read_jsonl(file.path):
            prompt = parse_prompt(row, file.source or Path(file.path).stem, f"{file.path} line {number}")
            pool.setdefault(prompt.prompt_id, prompt)
    if not pool:
        raise InputError(f"no prompts in {', '.join(file.path for file in files)}; a row is {{'messages': [...]}}")
    return list(pool.values())


def parse_prompt(row: dict[str, Any], source: str, where: str) -> Prompt:
    """A row as a prompt; a trailing assistant turn (an SFT row's answer) is dropped. `where` names it in errors."""
    messages = _messages(row, where)
    if messages and messages[-1].role == "assistant":
        messages = messages[:-1]
    return make_prompt(str(row.get("source", source)), _checked(messages, where))


def parse_conversation(row: dict[str, Any], where: str) -> tuple[Message, ...]:
    """The messages of a row whose answers stand beside them; so one that ends in an answer is refused, not cut."""
    if all(row.get(key) is not None for key in ("messages", "prompt")):
        raise InputError(f"{where}: has both 'messages' and 'prompt'; leave one of them out")
    messages = _messages(row, where)
    if messages and messages[-1].role == "assistant":
        raise InputError(
            f"{where}: messages[{len(messages) - 1}] is the assistant's, where the last one should be the user's; move "
            "it to 'completions' if it is to be scored, else take it out"
        )
    return _checked(messages, where)


def draw(pool: Sequence[Prompt], num_prompts: int, number: int, seed: int) -> list[Prompt]:
    """The prompts of round `number` (from 1): as many of each source as possible, the next ones in a seeded order.

    A source starts over when it is used up; no prompt comes twice in one round.
    """
    by_source = group_by_source(pool)
    drawn: list[Prompt] = []
    for source, quota in quotas({source: len(prompts) for source, prompts in by_source.items()}, num_prompts).items():
        order = sorted(by_source[source], key=lambda prompt: prompt.prompt_id)
        random.Random(f"{seed}/{source}").shuffle(order)
        first = (number - 1) * quota
        drawn += [order[(first + offset) % len(order)] for offset in range(quota)]
    random.Random(f"{seed}/round-{number}").shuffle(drawn)
    return drawn


def quotas(sizes: dict[str, int], num_prompts: int) -> dict[str, int]:
    """How many prompts each source gives: equal shares; what a small source cannot give, the others share.

    >>> quotas({"a": 100, "b": 2, "c": 100}, 10)
    {'a': 4, 'b': 2, 'c': 4}
    """
    left, result = num_prompts, {}
    by_size = sorted(sizes, key=lambda source: (sizes[source], source))
    for index, source in enumerate(by_size):
        share = left // (len(by_size) - index)
        result[source] = min(share, sizes[source])
        left -= result[source]
    return {source: result[source] for source in sorted(sizes)}


def group_by_source(pool: Sequence[Prompt]) -> dict[str, list[Prompt]]:
    """Prompts of each source, in pool order."""
    groups: dict[str, list[Prompt]] = defaultdict(list)
    for prompt in pool:
        groups[prompt.source].append(prompt)
    return dict(groups)


def _messages(row: dict[str, Any], where: str) -> tuple[Message, ...]:
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


def _checked(messages: tuple[Message, ...], where: str) -> tuple[Message, ...]:
    """The messages, in turn up to a user's. Raises InputError."""
    try:
        check_messages(messages, last_role="user")
    except ChatError as error:
        raise InputError(f"{where}: {error}") from None
    return messages
