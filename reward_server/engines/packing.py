"""Groups laid out as one row of tokens, everything that completions have in common held once. Pure.

    row          prompt   common   c1   c2   ...   c3     a tree of segments in depth-first order
    positions    0..P-1   P..      ..   ..         P..    a completion's last token predicts nothing and is left out

    token k is seen by token q   iff   k <= q < (end of the subtree of k's segment)

    b = N (P + R) / (P + N R)    how many times fewer tokens than N rows, where the prompt alone is shared

So attention is causal within a segment, and whole from a segment's subtree to the segment (attention.py). Completions
that begin alike share that beginning; equal ones are computed once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress, count, pairwise
from operator import ne

from reward_server.engines import TokenGroup

SHARED_BLOCK = 8
"""Completions share beginnings in blocks of so many tokens: each shared segment costs an attention call."""

PROMPT_SHARE = 8
"""A group is split into pieces of at least so many times its prompt, which is computed once for each."""

Tokens = Sequence[int]


@dataclass(frozen=True)
class Segment:
    """Tokens `start` to `stop` of a row; their descendants lie in `stop` to `subtree_stop`."""

    start: int
    stop: int
    subtree_stop: int


@dataclass
class PackedRow:
    """A row of T tokens, and its S scored tokens: `targets[i]` is predicted at index `sources[i]` of the row.

    `scored[g][n]` are the places, in `sources` and `targets`, of the tokens of completion n of the row's group g.
    """

    token_ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    scored: list[list[list[int]]] = field(default_factory=list)


def pack(groups: Sequence[TokenGroup]) -> PackedRow:
    """The row of one or more groups, one tree after the other.

    >>> row = pack([TokenGroup([7, 8], [[1, 2], [3]])])
    >>> row.token_ids, row.positions, row.segments
    ([7, 8, 1], [0, 1, 2], [Segment(start=0, stop=2, subtree_stop=3), Segment(start=2, stop=3, subtree_stop=3)])
    >>> row.sources, row.targets, row.scored
    ([1, 2, 1], [1, 2, 3], [[[0, 1], [2]]])
    """
    row = PackedRow()
    places: dict[tuple[int, int], int] = {}
    for group in groups:
        paths = _Tree(row, group).paths
        row.scored.append([_places(row, places, path, one) for path, one in zip(paths, group.completions, strict=True)])
    return row


def num_shared(one: Tokens, other: Tokens) -> int:
    """Tokens that two beginnings share in a row: whole blocks of what they have in common, all of it if they are equal.

    >>> num_shared([1] * 20, [1] * 19 + [2]), num_shared([1, 2], [1, 2]), num_shared([1, 2], [1, 3])
    (16, 2, 0)
    """
    num = next(compress(count(), map(ne, one, other)), min(len(one), len(other)))
    return num if num == len(one) == len(other) else num - num % SHARED_BLOCK


def _places(row: PackedRow, places: dict[tuple[int, int], int], path: list[int], completion: Tokens) -> list[int]:
    """Where a completion's tokens stand among the row's targets, each (source, target) once."""
    keys = list(zip(path, completion, strict=True))
    for key in keys:
        if key not in places:
            places[key] = len(row.targets)
            row.sources.append(key[0])
            row.targets.append(key[1])
    return [places[key] for key in keys]


class _Tree:
    """Appends the tree of one group to a row. `paths[n][i]`: at which index token i of completion n is predicted.

    In sorted order a completion shares with the one before it what it shares at all. The rest of its tokens follow, cut
    where later completions leave them. Positions count from the start of the prompt, which the first one brings along.
    """

    def __init__(self, row: PackedRow, group: TokenGroup) -> None:
        self.row = row
        self.paths: list[list[int]] = [[] for _ in group.completions]
        # Where segments end that later completions may go on from, and their places in `row.segments`.
        self._open: list[tuple[int, int]] = []
        prompt, reads = group.prompt_ids, [tuple(completion[:-1]) for completion in group.completions]
        order = sorted(range(len(reads)), key=reads.__getitem__)
        shared = [0, *(len(prompt) + num_shared(reads[one], reads[other]) for one, other in pairwise(order))]
        path: list[int] = []
        for n, num, cuts in zip(order, shared, cuts_of(shared), strict=True):
            tokens = reads[n][num - len(prompt) :] if num else [*prompt, *reads[n]]
            added = self._add(tokens, num, cuts)
            path = [*path[: num - len(prompt) + 1], *added] if num else [*added[len(prompt) - 1 :]]
            self.paths[n] = path
        self._close(0)

    def _add(self, tokens: Tokens, position: int, cuts: Sequence[int]) -> range:
        """Append tokens from `position` on, below the segment that ends there; where they lie in the row."""
        self._close(position)
        row, start = self.row, len(self.row.token_ids)
        stop = position + len(tokens)
        row.token_ids.extend(tokens)
        row.positions.extend(range(position, stop))
        for first, end in pairwise([position, *cuts, stop]):
            if first < end:
                self._open.append((end, len(row.segments)))
                row.segments.append(Segment(start + first - position, start + end - position, start + end - position))
        return range(start, len(row.token_ids))

    def _close(self, position: int) -> None:
        """End the subtrees of segments that end beyond a position."""
        segments = self.row.segments
        while self._open and self._open[-1][0] > position:
            _, index = self._open.pop()
            segments[index] = replace(segments[index], subtree_stop=len(self.row.token_ids))


def cuts_of(shared: Sequence[int]) -> list[list[int]]:
    """Where later ones leave what each completion adds: `shared[k]` tokens are common to it and the one before.

    >>> cuts_of([0, 16, 24, 8])  # the second goes on after 16 tokens of the first, the fourth after 8
    [[8, 16], [24], [], []]
    """
    cuts: list[list[int]] = []
    ahead: list[int] = []  # how many tokens the completions to come share with this one, the most last
    for num in reversed(shared):
        own: list[int] = []
        while ahead and ahead[-1] >= num:
            own.append(ahead.pop())
        ahead.append(num)
        cuts.append([one for one in reversed(own) if one > num])
    return cuts[::-1]


def rows(groups: Sequence[TokenGroup], token_budget: int, target: int) -> Iterator[list[tuple[int, list[int]]]]:
    """What to compute together: rows of (index of a group, indices of some of its completions).

    A row holds about `target` tokens, more where a prompt would else be computed too often, and at most `token_budget`,
    or one completion with its prompt. A larger group is split, its prompt in each piece; completions that begin alike
    stay together.

    >>> list(rows([TokenGroup([7, 8], [[1, 2], [3, 4], [5] * 9, [6]])], token_budget=4, target=4))
    [[(0, [3, 0, 1])], [(0, [2])]]
    >>> list(rows([TokenGroup([7], [[1]]), TokenGroup([8], [[1]]), TokenGroup([9], [[1]])], token_budget=9, target=2))
    [[(0, [0]), (1, [0])], [(2, [0])]]
    """
    row: list[tuple[int, list[int]]] = []
    room = target
    for index, group in enumerate(groups):
        own_target = max(target, PROMPT_SHARE * len(group.prompt_ids))
        for piece, cost in pieces(group, min(token_budget, own_target)):
            if row and cost > room:
                yield row
                row, room = [], target
            row.append((index, piece))
            room -= cost
    if row:
        yield row


def pieces(group: TokenGroup, token_budget: int) -> Iterator[tuple[list[int], int]]:
    """Completions of a group whose row holds at most `token_budget` tokens, or one completion; with the row's tokens.

    The count is an upper bound: in sorted order, a completion shares with the one before it what it shares at all.
    """
    prompt, reads = len(group.prompt_ids), [tuple(completion[:-1]) for completion in group.completions]
    piece: list[int] = []
    cost = prompt
    for index in sorted(range(len(reads)), key=lambda one: (reads[one], one)):
        added = len(reads[index]) - (num_shared(reads[piece[-1]], reads[index]) if piece else 0)
        if piece and cost + added > token_budget:
            yield piece, cost
            piece, cost, added = [], prompt, len(reads[index])
        piece.append(index)
        cost += added
    yield piece, cost
