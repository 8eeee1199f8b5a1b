"""Prompt pools: files -> prompts without duplicates -> the prompts of a round, uniformly by source.

    {"messages": [{"role": "user", "content": "..."}], "source": "arithmetic"}     or     {"prompt": "..."}

A prompt's id is the hash of its source and messages, never its place or its text as a key: equal texts of two sources
stay two prompts, and equal rows of one source are one.
"""

import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from winnow.conversations import checked_messages, row_messages
from winnow.errors import InputError
from winnow.records import Prompt, Role, make_prompt
from winnow.rows import read_jsonl
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
    messages = row_messages(row, where)
    if messages and messages[-1].role == "assistant":
        messages = messages[:-1]
    return make_prompt(str(row.get("source", source)), checked_messages(messages, where))


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
