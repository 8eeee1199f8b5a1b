"""Prefix-tree packing: all completions of a group in one token sequence, shared prefixes computed once. Pure.

A model usually reads one sequence for each completion: its prompt, then its tokens. Here the completions of a group
form a prefix tree (trie). Its nodes are segments of tokens; they lie in depth-first order in one packed sequence.
Tree attention (attention.py) lets each token see the segments above its own, so that a token's hidden state is what it
would be in a sequence of its own:

    token q sees token k   iff   k <= q < subtree_stop(segment of k)

Packing a group takes these steps:

    1. Drop the last token of each completion. It is predicted, but it predicts nothing.
    2. Sort the completions by their token ids. Each then shares its longest prefix with its predecessor.
    3. Round shared prefixes down to whole blocks of SHARED_BLOCK tokens; equal completions share all tokens.
    4. For each completion, append the tokens that it does not share with its predecessor; for the first one, also the
       prompt.
    5. Cut these tokens into segments where later completions branch off.
    6. Count positions from the start of the prompt, along the path from the root.
    7. Note for each token of a completion at which index of the sequence it is predicted.

Worked example: prompt 5 6 and three completions. The first two share one block of eight tokens.

    completion 0   11 12 13 14 15 16 17 18 21 22
    completion 1   11 12 13 14 15 16 17 18 31 32
    completion 2   41 42

    index          0  1 |  2  3  4  5  6  7  8  9 | 10 | 11 | 12
    token id       5  6 | 11 12 13 14 15 16 17 18 | 21 | 31 | 41
    position       0  1 |  2  3  4  5  6  7  8  9 | 10 | 10 |  2
    subtree_stop     13 |                      12 | 11 | 12 | 13

    0-1 prompt  -+-  2-9 shared block  -+-  10 completion 0
                 |                      +-  11 completion 1
                 +-  12 completion 2

The last tokens 22, 32 and 42 are predicted at the indices 10, 11 and 12. The sequence has 13 tokens, where three
sequences of their own have 11 + 11 + 3 = 25.

>>> block = [11, 12, 13, 14, 15, 16, 17, 18]
>>> sequence = pack([TokenGroup([5, 6], [[*block, 21, 22], [*block, 31, 32], [41, 42]])])
>>> sequence.token_ids
[5, 6, 11, 12, 13, 14, 15, 16, 17, 18, 21, 31, 41]
>>> sequence.positions
[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10, 2]
>>> [(segment.start, segment.stop, segment.subtree_stop) for segment in sequence.segments]
[(0, 2, 13), (2, 10, 12), (10, 11, 11), (11, 12, 12), (12, 13, 13)]

In general, N completions of R tokens after a prompt of P tokens that share the prompt alone cost P + N R tokens instead
of N (P + R): fewer by the factor N (P + R) / (P + N R).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress, count, pairwise
from operator import ne

from reward_server.engines import TokenGroup

SHARED_BLOCK = 8
"""Shared prefixes are multiples of this many tokens: each shared segment costs a call of attention."""

PROMPT_SHARE = 8
"""A chunk of a group may hold this many times the tokens of its prompt, which is computed again for each chunk."""

TokenIds = Sequence[int]


@dataclass(frozen=True)
class Segment:
    """A node of the prefix tree: tokens `start` to `stop` of the sequence; its descendants end at `subtree_stop`."""

    start: int
    stop: int
    subtree_stop: int


@dataclass
class PackedSequence:
    """The prefix trees of one or more groups in one sequence of T tokens, with S tokens to predict.

    The token `targets[i]` is predicted at index `predictors[i]` of the sequence. `target_places[g][n]` holds, for each
    token of completion n of group g, its place i in `predictors` and `targets`.
    """

    token_ids: list[int] = field(default_factory=list)
    """[T]."""
    positions: list[int] = field(default_factory=list)
    """[T], counted from the start of the token's own prompt."""
    segments: list[Segment] = field(default_factory=list)
    """In order; together they cover the sequence."""
    predictors: list[int] = field(default_factory=list)
    """[S]."""
    targets: list[int] = field(default_factory=list)
    """[S]."""
    target_places: list[list[list[int]]] = field(default_factory=list)


def pack(groups: Sequence[TokenGroup]) -> PackedSequence:
    """Return the packed sequence of one or more groups, one prefix tree after the other.

    >>> sequence = pack([TokenGroup([7, 8], [[1, 2], [3]])])
    >>> sequence.token_ids, sequence.positions
    ([7, 8, 1], [0, 1, 2])
    >>> sequence.predictors, sequence.targets, sequence.target_places
    ([1, 2, 1], [1, 2, 3], [[[0, 1], [2]]])
    """
    sequence = PackedSequence()
    for group in groups:
        predictors = _TreeBuilder(sequence).add(group)
        sequence.target_places.append(_add_targets(sequence, group, predictors))
    return sequence


def num_shared_tokens(first: TokenIds, second: TokenIds) -> int:
    """Return how many tokens of a common prefix are shared: whole blocks, or all tokens of equal completions.

    >>> num_shared_tokens([1] * 20, [1] * 19 + [2]), num_shared_tokens([1, 2], [1, 2]), num_shared_tokens([1, 2], [1])
    (16, 2, 0)
    """
    first_difference = next(compress(count(), map(ne, first, second)), min(len(first), len(second)))
    if first_difference == len(first) == len(second):
        return first_difference
    return first_difference - first_difference % SHARED_BLOCK


def _add_targets(sequence: PackedSequence, group: TokenGroup, predictors: list[list[int]]) -> list[list[int]]:
    """Append the tokens to predict, each (predictor, target) once. Returns each completion's places among them."""
    place_of: dict[tuple[int, int], int] = {}
    places = []
    for indices, completion in zip(predictors, group.completions, strict=True):
        pairs = list(zip(indices, completion, strict=True))
        for pair in pairs:
            if pair not in place_of:
                predictor, target = pair
                place_of[pair] = len(sequence.targets)
                sequence.predictors.append(predictor)
                sequence.targets.append(target)
        places.append([place_of[pair] for pair in pairs])
    return places


class _TreeBuilder:
    """A builder that appends the prefix tree of one group to a packed sequence."""

    def __init__(self, sequence: PackedSequence) -> None:
        self._sequence = sequence
        # The path from the root to the segment appended last: (position where the segment stops, its index).
        self._open_segments: list[tuple[int, int]] = []

    def add(self, group: TokenGroup) -> list[list[int]]:
        """Append the tree. Returns, for each token of each completion, the index at which it is predicted."""
        num_prompt_tokens = len(group.prompt_ids)
        read_ids = [tuple(completion[:-1]) for completion in group.completions]
        order = sorted(range(len(read_ids)), key=read_ids.__getitem__)

        # Tokens that each conversation, in sorted order, shares with its predecessor; all share the prompt.
        shared_lengths = [0]
        for predecessor, current in pairwise(order):
            shared_lengths.append(num_prompt_tokens + num_shared_tokens(read_ids[predecessor], read_ids[current]))

        predictors: list[list[int]] = [[] for _ in read_ids]
        path: list[int] = []  # the sequence's index of each token of the current conversation
        for index, shared_length, cuts in zip(order, shared_lengths, branch_points(shared_lengths), strict=True):
            if shared_length == 0:
                new_ids = [*group.prompt_ids, *read_ids[index]]
            else:
                new_ids = list(read_ids[index][shared_length - num_prompt_tokens :])
            del path[shared_length:]
            path.extend(self._append(new_ids, shared_length, cuts))
            # The prompt's last token predicts the completion's first one.
            predictors[index] = path[num_prompt_tokens - 1 :]
        self._close_segments(0)
        return predictors

    def _append(self, token_ids: TokenIds, position: int, cuts: Sequence[int]) -> range:
        """Append tokens from `position` on, cut into segments at the positions `cuts`. Returns their indices."""
        self._close_segments(position)
        sequence = self._sequence
        start = len(sequence.token_ids)
        stop_position = position + len(token_ids)
        sequence.token_ids.extend(token_ids)
        sequence.positions.extend(range(position, stop_position))
        offset = start - position  # from a position to the index of the token there
        for segment_position, next_position in pairwise([position, *cuts, stop_position]):
            if segment_position < next_position:
                stop = next_position + offset
                self._open_segments.append((next_position, len(sequence.segments)))
                sequence.segments.append(Segment(segment_position + offset, stop, subtree_stop=stop))
        return range(start, len(sequence.token_ids))

    def _close_segments(self, position: int) -> None:
        """End the subtree of each segment that stops beyond `position`: what follows branches off before its end."""
        segments = self._sequence.segments
        while self._open_segments and self._open_segments[-1][0] > position:
            _, index = self._open_segments.pop()
            segments[index] = replace(segments[index], subtree_stop=len(self._sequence.token_ids))


def branch_points(shared_lengths: Sequence[int]) -> list[list[int]]:
    """Return, for each completion in sorted order, the offsets at which later completions branch off.

    `shared_lengths[k]` counts the tokens that completion k shares with its predecessor. Only offsets within the tokens
    that a completion adds count.

    >>> branch_points([0, 16, 24, 8])  # the second leaves the first after 16 tokens, the fourth after 8
    [[8, 16], [24], [], []]
    """
    cuts_in_reverse: list[list[int]] = []
    # The numbers of tokens that later completions share with the current one, each number once, the largest last.
    later_offsets: list[int] = []
    for shared_length in reversed(shared_lengths):
        cuts: list[int] = []
        while later_offsets and later_offsets[-1] >= shared_length:
            offset = later_offsets.pop()
            if offset > shared_length:
                cuts.append(offset)
        later_offsets.append(shared_length)
        cuts_in_reverse.append(cuts[::-1])
    return cuts_in_reverse[::-1]


@dataclass(frozen=True)
class Chunk:
    """Some completions of a group that are computed together, by index; at most `num_tokens` in a packed sequence."""

    group_index: int
    completion_indices: list[int]
    num_tokens: int


def plan_sequences(groups: Sequence[TokenGroup], token_budget: int, target_tokens: int) -> Iterator[list[Chunk]]:
    """Yield the chunks of each packed sequence.

    A sequence holds about `target_tokens` tokens, or more if a prompt would otherwise be computed too often. It holds
    at most `token_budget` tokens, or one completion with its prompt. A larger group is split into chunks, each with the
    prompt; completions with a common prefix stay together.

    >>> for chunks in plan_sequences([TokenGroup([7, 8], [[1, 2], [3, 4], [5] * 9, [6]])], 4, target_tokens=4):
    ...     print(chunks)
    [Chunk(group_index=0, completion_indices=[3, 0, 1], num_tokens=4)]
    [Chunk(group_index=0, completion_indices=[2], num_tokens=10)]
    >>> groups = [TokenGroup([7], [[1]]), TokenGroup([8], [[1]]), TokenGroup([9], [[1]])]
    >>> [[chunk.group_index for chunk in chunks] for chunks in plan_sequences(groups, 9, target_tokens=2)]
    [[0, 1], [2]]
    """
    chunks: list[Chunk] = []
    num_free = target_tokens
    for group_index, group in enumerate(groups):
        chunk_budget = min(token_budget, max(target_tokens, PROMPT_SHARE * len(group.prompt_ids)))
        for chunk in split_group(group_index, group, chunk_budget):
            if chunks and chunk.num_tokens > num_free:
                yield chunks
                chunks = []
                num_free = target_tokens
            chunks.append(chunk)
            num_free -= chunk.num_tokens
    if chunks:
        yield chunks


def split_group(group_index: int, group: TokenGroup, token_budget: int) -> Iterator[Chunk]:
    """Yield chunks of a group that pack into at most `token_budget` tokens each, or hold one completion.

    `Chunk.num_tokens` is an upper bound: in sorted order, a completion's longest shared prefix is with its predecessor.
    """
    num_prompt_tokens = len(group.prompt_ids)
    read_ids = [tuple(completion[:-1]) for completion in group.completions]
    order = sorted(range(len(read_ids)), key=read_ids.__getitem__)
    indices = [order[0]]
    num_tokens = num_prompt_tokens + len(read_ids[order[0]])
    for predecessor, current in pairwise(order):
        num_new = len(read_ids[current]) - num_shared_tokens(read_ids[predecessor], read_ids[current])
        if num_tokens + num_new > token_budget:
            yield Chunk(group_index, indices, num_tokens)
            indices = []
            num_tokens = num_prompt_tokens
            num_new = len(read_ids[current])
        indices.append(current)
        num_tokens += num_new
    yield Chunk(group_index, indices, num_tokens)
