"""A prompt and N completions in one row, the prompt once.

    row          prompt   c1   c2   ...   cN         each completion without its last token, which predicts nothing
    positions    0..P-1   P..  P..        P..        restart at the prompt's end
    blocks       0        1    2          N          a token sees block 0 and its own, at positions up to its own

    b = N (P + R) / (P + N R)      how many times fewer tokens than N rows of prompt and completion

A group of more tokens than the budget is split into rows, each with the prompt.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from reward_server.engines import TokenGroup


@dataclass(frozen=True)
class PackedRow:
    """A row of T tokens, and its S scored tokens: target i is predicted at index `sources[i]` of the row."""

    token_ids: list[int]
    positions: list[int]
    blocks: list[int]
    sources: list[int]
    targets: list[int]


def pack(prompt_ids: Sequence[int], completions: Sequence[Sequence[int]], *, is_last_read: bool = False) -> PackedRow:
    """The row of a prompt and its completions; targets stand in the order of the completions.

    With `is_last_read` the row holds the completions' last tokens too, for a model that goes by the row's length.

    >>> row = pack([7, 8], [[1, 2], [3]])
    >>> row.token_ids, row.positions, row.blocks
    ([7, 8, 1], [0, 1, 2], [0, 0, 1])
    >>> row.sources, row.targets
    ([1, 2, 1], [1, 2, 3])
    """
    num_prompt = len(prompt_ids)
    row = PackedRow(list(prompt_ids), list(range(num_prompt)), [0] * num_prompt, [], [])
    for block, completion in enumerate(completions, start=1):
        start, read = len(row.token_ids), completion if is_last_read else completion[:-1]
        row.sources.extend([num_prompt - 1, *range(start, start + len(completion) - 1)])
        row.targets.extend(completion)
        row.token_ids.extend(read)
        row.positions.extend(range(num_prompt, num_prompt + len(read)))
        row.blocks.extend([block] * len(read))
    return row


def split(group: TokenGroup, token_budget: int) -> Iterator[range]:
    """Ranges of completions whose rows hold at most `token_budget` tokens, or one completion.

    >>> list(split(TokenGroup([7, 8], [[1, 2], [3, 4], [5] * 9, [6]]), token_budget=4))
    [range(0, 2), range(2, 3), range(3, 4)]
    """
    start, num_tokens = 0, len(group.prompt_ids)
    for index, completion in enumerate(group.completions):
        num_read = len(completion) - 1
        if index > start and num_tokens + num_read > token_budget:
            yield range(start, index)
            start, num_tokens = index, len(group.prompt_ids)
        num_tokens += num_read
    yield range(start, len(group.completions))
