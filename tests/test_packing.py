"""Prefix-tree packing: each token sees its own conversation and nothing else, at the right positions."""

from collections.abc import Sequence
from itertools import chain

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from reward_server.engines import TokenGroup
from reward_server.engines.packing import SHARED_BLOCK, PackedSequence, Segment, pack, plan_sequences, split_group

PROMPTS = st.lists(st.integers(0, 2), min_size=1, max_size=5)
# Few kinds of tokens, in runs: completions with common prefixes, equal completions, completions that end in others.
RUNS = st.lists(st.sampled_from([[0] * 9, [1] * 9, [0], [1]]), min_size=1, max_size=6)
COMPLETIONS = st.lists(RUNS.map(lambda runs: list(chain.from_iterable(runs))), min_size=1, max_size=6)
GROUPS = st.lists(st.builds(TokenGroup, PROMPTS, COMPLETIONS), min_size=1, max_size=3)


def num_packed_tokens(*groups: TokenGroup) -> int:
    return len(pack(groups).token_ids)


def select(group: TokenGroup, indices: Sequence[int]) -> TokenGroup:
    return TokenGroup(group.prompt_ids, [group.completions[index] for index in indices])


def indices_seen_by(sequence: PackedSequence, query: int) -> list[int]:
    """Apply the rule of tree attention, token by token."""
    seen = []
    for segment in sequence.segments:
        for key in range(segment.start, segment.stop):
            if key <= query < segment.subtree_stop:
                seen.append(key)
    return seen


@settings(max_examples=150, deadline=None)
@given(GROUPS)
def test_each_scored_token_sees_exactly_the_tokens_before_it_in_its_conversation(groups: list[TokenGroup]) -> None:
    sequence = pack(groups)
    for group, group_places in zip(groups, sequence.target_places, strict=True):
        for completion, places in zip(group.completions, group_places, strict=True):
            assert [sequence.targets[place] for place in places] == list(completion)
            for step, place in enumerate(places):
                seen = indices_seen_by(sequence, sequence.predictors[place])
                assert [sequence.token_ids[index] for index in seen] == [*group.prompt_ids, *completion[:step]]
                assert [sequence.positions[index] for index in seen] == list(range(len(seen)))


@settings(max_examples=150, deadline=None)
@given(GROUPS)
def test_segments_cover_the_packed_sequence_and_none_is_empty(groups: list[TokenGroup]) -> None:
    sequence = pack(groups)
    segments = sequence.segments
    assert all(segment.start < segment.stop <= segment.subtree_stop for segment in segments)
    assert segments[0].start == 0
    assert [segment.stop for segment in segments[:-1]] == [segment.start for segment in segments[1:]]
    assert segments[-1].stop == len(sequence.token_ids) == len(sequence.positions)


@settings(max_examples=150, deadline=None)
@given(GROUPS, st.integers(1, 60), st.integers(1, 60))
def test_plan_sequences_yields_each_completion_once_within_the_budget(
    groups: list[TokenGroup], token_budget: int, target: int
) -> None:
    planned: list[tuple[int, int]] = []
    for chunks in plan_sequences(groups, token_budget, target):
        parts = [select(groups[chunk.group_index], chunk.completion_indices) for chunk in chunks]
        for chunk in chunks:
            planned.extend((chunk.group_index, index) for index in chunk.completion_indices)
        is_single_completion = len(chunks) == 1 and len(chunks[0].completion_indices) == 1
        assert is_single_completion or num_packed_tokens(*parts) <= max(token_budget, target)
    expected: list[tuple[int, int]] = []
    for group_index, group in enumerate(groups):
        expected.extend((group_index, index) for index in range(len(group.completions)))
    assert sorted(planned) == expected


@settings(max_examples=150, deadline=None)
@given(GROUPS, st.integers(1, 60))
def test_split_group_never_counts_too_few_tokens(groups: list[TokenGroup], token_budget: int) -> None:
    for group_index, group in enumerate(groups):
        for chunk in split_group(group_index, group, token_budget):
            assert num_packed_tokens(select(group, chunk.completion_indices)) <= chunk.num_tokens
            assert chunk.num_tokens <= token_budget or len(chunk.completion_indices) == 1


def test_the_worked_example_of_three_completions() -> None:
    """The example of packing's docstring, with the places of its tokens."""
    block = [11, 12, 13, 14, 15, 16, 17, 18]
    sequence = pack([TokenGroup([5, 6], [[*block, 21, 22], [*block, 31, 32], [41, 42]])])
    assert sequence.token_ids == [5, 6, *block, 21, 31, 41]
    assert sequence.positions == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10, 2]
    assert sequence.segments == [
        Segment(0, 2, subtree_stop=13),
        Segment(2, 10, subtree_stop=12),
        Segment(10, 11, subtree_stop=11),
        Segment(11, 12, subtree_stop=12),
        Segment(12, 13, subtree_stop=13),
    ]
    assert sequence.targets == [*block, 21, 22, 31, 32, 41, 42]
    assert sequence.predictors == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 9, 11, 1, 12]
    assert sequence.target_places == [[[*range(10)], [*range(8), 10, 11], [12, 13]]]


def test_prefixes_are_shared_in_whole_blocks() -> None:
    prefix = [1] * (SHARED_BLOCK + 3)
    group = TokenGroup([7, 7], [[*prefix, 2, 9], [*prefix, 3, 9], [4, 9]])
    assert num_packed_tokens(group) == 2 + SHARED_BLOCK + 4 + 4 + 1


def test_a_prompt_with_one_completion_is_one_segment() -> None:
    sequence = pack([TokenGroup([7, 8], [[1, 2, 3]])])
    assert [(segment.start, segment.stop) for segment in sequence.segments] == [(0, 4)]
    assert (sequence.predictors, sequence.targets) == ([1, 2, 3], [1, 2, 3])


def test_a_deep_tree_does_not_exhaust_the_stack() -> None:
    """Each level shares at least a block with the one above it."""
    generator = np.random.default_rng(0)
    completions = [[1] * (8 * level) + [2, level] for level in generator.permutation(300).tolist()]
    assert num_packed_tokens(TokenGroup([7] * 100, completions)) < 100 + 300 * 16


def test_all_prefixes_of_one_long_completion_cost_no_more_than_the_completion() -> None:
    """Completions within one another: a chain of as many segments, deeper than the stack."""
    longest = np.random.default_rng(0).integers(0, 300, 8 * 1100 + 1).tolist()
    group = TokenGroup([7] * 100, [longest[: 8 * num_blocks + 1] for num_blocks in range(1, 1101)])
    sequence = pack([group])
    assert sequence.token_ids == [*group.prompt_ids, *longest[:-1]]
    assert len(sequence.segments) == 1100
    assert {segment.subtree_stop for segment in sequence.segments} == {len(sequence.token_ids)}
    assert [sequence.targets[place] for place in sequence.target_places[0][700]] == longest[: 8 * 701 + 1]
