"""Groups laid out as one row of tokens, everything that completions have in common held once. Pure.

    row          prompt   common   c1   c2   ...   c3     a tree of segments in depth-first order
    positions    0..P-1   P..      ..   ..         P..    a completion's last token predicts nothing and is left out

    token k is seen by token q   iff   k <= q < (end of the subtree of k's segment)

    b = N (P + R) / (P + N R)    how many times fewer tokens than N rows, where the prompt alone is shared

So attention is causal within a segment, and whole from a segment's subtree to the segment (attention.py). Completions
that begin alike share that beginning; equal ones are computed once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

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
    num = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
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
    """Appends the tree of one group to a row. `paths[n][i]`: at which index token i of completion n is predicted."""

    def __init__(self, row: PackedRow, group: TokenGroup) -> None:
        self.row = row
        reads = [tuple(completion[:-1]) for completion in group.completions]
        self.paths: list[list[int]] = [[] for _ in reads]
        order = sorted(range(len(reads)), key=reads.__getitem__)
        self._reads = reads
        shared = self._shared(order, 0)
        self._place(order, len(shared), [*group.prompt_ids, *shared], 0)
        for path in self.paths:
            del path[: len(group.prompt_ids) - 1]

    def _shared(self, members: Sequence[int], offset: int) -> Tokens:
        """What sorted members have in common from `offset` on."""
        first, last = self._reads[members[0]][offset:], self._reads[members[-1]][offset:]
        return first[: num_shared(first, last)]

    def _place(self, members: Sequence[int], offset: int, tokens: Tokens, position: int) -> None:
        """Append a segment that sorted `members` share, which ends at `offset` of their tokens, and its descendants."""
        row, start = self.row, len(self.row.token_ids)
        stop = start + len(tokens)
        row.token_ids.extend(tokens)
        row.positions.extend(range(position, position + len(tokens)))
        own = len(row.segments)
        if tokens:
            row.segments.append(Segment(start, stop, stop))
        for member in members:
            self.paths[member].extend(range(start, stop))
        for cluster in self._clusters(members, offset):
            shared = self._shared(cluster, offset)
            self._place(cluster, offset + len(shared), shared, position + len(tokens))
        if tokens:
            row.segments[own] = Segment(start, stop, len(row.token_ids))

    def _clusters(self, members: Sequence[int], offset: int) -> Iterator[Sequence[int]]:
        """Sorted members with tokens left, those together that share what comes next."""
        cluster: list[int] = []
        for member in members:
            rest = self._reads[member][offset:]
            if not rest:
                continue
            if cluster and not num_shared(self._reads[cluster[0]][offset:], rest):
                yield cluster
                cluster = []
            cluster.append(member)
        if cluster:
            yield cluster


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
