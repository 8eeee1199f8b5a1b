"""Prompt pools: files -> prompts without duplicates -> the probe, the prompts of a round, uniformly by source.

    {"messages": [{"role": "user", "content": "..."}], "source": "arithmetic"}     or     {"prompt": "..."}

A prompt's id is the hash of its source and messages, never its position in a file or its text alone: equal texts of two
sources stay two prompts, and equal rows of one source are one prompt.
"""

import random
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from winnow.conversations import checked_messages, row_messages
from winnow.errors import InputError
from winnow.records import Prompt, make_prompt
from winnow.rows import read_jsonl
from winnow.run_config import PromptFile

# The probe takes at most this part of each source's prompts: one in ten.
PROBE_DIVISOR = 10


def read_pool(files: Sequence[PromptFile]) -> list[Prompt]:
    """Return every prompt of the files once, in file order.

    Raises InputError for a malformed row, with its file and line, or if the files hold no prompt.
    """
    pool: dict[str, Prompt] = {}
    for file in files:
        default_source = source_of(file)
        for line_number, row in read_jsonl(file.path):
            prompt = parse_prompt(row, default_source, f"{file.path} line {line_number}")
            pool.setdefault(prompt.prompt_id, prompt)
    check_has_prompts(files, len(pool))
    return list(pool.values())


def source_of(file: PromptFile) -> str:
    """Return the source of the file's rows that name none."""
    return file.source or Path(file.path).stem


def check_has_prompts(files: Sequence[PromptFile], num_prompts: int) -> None:
    """Raise InputError if the files hold no prompt."""
    if num_prompts == 0:
        raise InputError(f"no prompts in {', '.join(file.path for file in files)}; a row is {{'messages': [...]}}")


def parse_prompt(row: dict[str, Any], default_source: str, location: str) -> Prompt:
    """Make a prompt from a row; a trailing assistant turn, as an SFT row has it, is dropped.

    Raises InputError for a malformed row; the message begins with `location`.
    """
    messages = row_messages(row, location)
    if messages and messages[-1].role == "assistant":
        messages = messages[:-1]
    return make_prompt(str(row.get("source", default_source)), checked_messages(messages, location))


def draw_prompts(pool: Sequence[Prompt], num_prompts: int, round_number: int, seed: int) -> list[Prompt]:
    """Draw the prompts of a round; the first round is 1.

    Each source has a seeded order, of which every round takes the next prompts, as many as the source's quota. A source
    starts over when it is used up; no prompt occurs twice in one round.
    """
    by_source = group_by_source(pool)
    sizes = {source: len(prompts) for source, prompts in by_source.items()}
    drawn: list[Prompt] = []
    for source, quota in quotas(sizes, num_prompts).items():
        order = sorted(by_source[source], key=lambda prompt: prompt.prompt_id)
        random.Random(f"{seed}/{source}").shuffle(order)
        first = (round_number - 1) * quota
        drawn += [order[(first + offset) % len(order)] for offset in range(quota)]
    random.Random(f"{seed}/round-{round_number}").shuffle(drawn)
    return drawn


def draw_probe(pool: Sequence[Prompt], num_prompts: int, seed: int, *, is_shared: bool) -> list[Prompt]:
    """Draw the prompts of the probe, equally many of each source.

    If rounds draw from the pool too (`is_shared`), each source gives a tenth of its prompts at most, rounded down.
    """
    by_source = group_by_source(pool)
    sizes = {source: len(prompts) for source, prompts in by_source.items()}
    drawn: list[Prompt] = []
    for source, quota in quotas(probe_sizes(sizes) if is_shared else sizes, num_prompts).items():
        in_order = sorted(by_source[source], key=lambda prompt: prompt.prompt_id)
        drawn += random.Random(f"{seed}/probe/{source}").sample(in_order, quota)
    random.Random(f"{seed}/probe").shuffle(drawn)
    return drawn


def probe_sizes(sizes: dict[str, int]) -> dict[str, int]:
    """Return the number of prompts that each source may give to the probe.

    >>> probe_sizes({"a": 100, "b": 25, "c": 9})
    {'a': 10, 'b': 2, 'c': 0}
    """
    return {source: size // PROBE_DIVISOR for source, size in sizes.items()}


def without_probe(pool: Sequence[Prompt], probe: Collection[Prompt]) -> list[Prompt]:
    """Return the prompts of the pool whose messages are not in the probe, whatever their source.

    Raises InputError if none are left.
    """
    probed = {prompt.messages for prompt in probe}
    remaining = [prompt for prompt in pool if prompt.messages not in probed]
    if not remaining:
        raise InputError(
            "no prompts are left for the rounds: evaluation.probe.files holds all prompts of prompts.files; "
            "give the probe files of its own, or none"
        )
    return remaining


def quotas(sizes: dict[str, int], num_prompts: int) -> dict[str, int]:
    """Return the number of prompts to draw from each source: equal shares; larger sources make up for small ones.

    >>> quotas({"a": 100, "b": 2, "c": 100}, 10)
    {'a': 4, 'b': 2, 'c': 4}
    """
    by_size = sorted(sizes, key=lambda source: (sizes[source], source))
    result = {}
    num_left = num_prompts
    for index, source in enumerate(by_size):
        share = num_left // (len(by_size) - index)
        result[source] = min(share, sizes[source])
        num_left -= result[source]
    return {source: result[source] for source in sorted(sizes)}


def group_by_source(pool: Sequence[Prompt]) -> dict[str, list[Prompt]]:
    """Group prompts by their source, in pool order."""
    groups: dict[str, list[Prompt]] = defaultdict(list)
    for prompt in pool:
        groups[prompt.source].append(prompt)
    return dict(groups)
