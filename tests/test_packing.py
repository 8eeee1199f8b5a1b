"""A row's layout: every token sees its own conversation and nothing else, at the positions it has there."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from reward_server.engines import TokenGroup
from reward_server.engines.packing import SHARED_BLOCK, PackedRow, pack, pieces, rows

IDS = st.lists(st.integers(0, 2), min_size=1, max_size=5)
# Few kinds of tokens, in runs: completions that begin alike, that are equal, that end within one another.
RUNS = st.lists(st.sampled_from([[0] * 9, [1] * 9, [0], [1]]), min_size=1, max_size=6).map(
    lambda runs: [token for run in runs for token in run]
)
GROUPS = st.lists(
    st.builds(TokenGroup, IDS, st.lists(RUNS, min_size=1, max_size=6)),
    min_size=1,
    max_size=3,
)


def num_tokens(group: TokenGroup) -> int:
    return len(pack([group]).token_ids)


def seen_by(row: PackedRow, query: int) -> list[int]:
    stops = {key: one.subtree_stop for one in row.segments for key in range(one.start, one.stop)}
    return [key for key in range(query + 1) if query < stops[key]]


@settings(max_examples=150, deadline=None)
@given(GROUPS)
def test_each_scored_token_sees_what_comes_before_it_and_nothing_else(groups: list[TokenGroup]) -> None:
    row = pack(groups)
    for group, scored in zip(groups, row.scored, strict=True):
        for completion, places in zip(group.completions, scored, strict=True):
            assert [row.targets[place] for place in places] == list(completion)
            for step, place in enumerate(places):
                seen = seen_by(row, row.sources[place])
                assert [row.token_ids[key] for key in seen] == [*group.prompt_ids, *completion[:step]]
                assert [row.positions[key] for key in seen] == list(range(len(seen)))


@settings(max_examples=150, deadline=None)
@given(GROUPS)
def test_segments_follow_one_another_and_hold_something(groups: list[TokenGroup]) -> None:
    row = pack(groups)
    assert all(one.start < one.stop <= one.subtree_stop for one in row.segments)
    assert [one.stop for one in row.segments[:-1]] == [one.start for one in row.segments[1:]]
    assert row.segments[-1].stop == len(row.token_ids) == len(row.positions)


@settings(max_examples=150, deadline=None)
@given(GROUPS, st.integers(1, 60), st.integers(1, 60))
def test_rows_hold_every_completion_once_within_the_budget(groups: list[TokenGroup], budget: int, target: int) -> None:
    seen = []
    for row in rows(groups, budget, target):
        parts = [TokenGroup(groups[g].prompt_ids, [groups[g].completions[n] for n in ns]) for g, ns in row]
        seen += [(g, n) for g, ns in row for n in ns]
        is_one = len(row) == 1 and len(row[0][1]) == 1
        assert is_one or len(pack(parts).token_ids) <= max(budget, target)
    assert sorted(seen) == [(g, n) for g, group in enumerate(groups) for n in range(len(group.completions))]


@settings(max_examples=150, deadline=None)
@given(GROUPS, st.integers(1, 60))
def test_the_count_of_a_piece_is_never_too_small(groups: list[TokenGroup], budget: int) -> None:
    for group in groups:
        for piece, cost in pieces(group, budget):
            part = TokenGroup(group.prompt_ids, [group.completions[n] for n in piece])
            assert num_tokens(part) <= cost
            assert cost <= budget or len(piece) == 1


def test_beginnings_are_shared_in_whole_blocks() -> None:
    common = [1] * (SHARED_BLOCK + 3)
    group = TokenGroup([7, 7], [[*common, 2, 9], [*common, 3, 9], [4, 9]])
    assert num_tokens(group) == 2 + SHARED_BLOCK + 4 + 4 + 1


def test_a_prompt_with_one_completion_is_one_segment() -> None:
    row = pack([TokenGroup([7, 8], [[1, 2, 3]])])
    assert [(one.start, one.stop) for one in row.segments] == [(0, 4)]
    assert (row.sources, row.targets) == ([1, 2, 3], [1, 2, 3])


def test_a_thousand_completions_are_laid_out_quickly() -> None:
    """Deep trees do not exhaust the stack: each level shares at least a block."""
    draw = np.random.default_rng(0)
    group = TokenGroup([7] * 100, [[1] * (8 * n) + [2, n] for n in draw.permutation(300).tolist()])
    assert num_tokens(group) < 100 + 300 * 16


def test_every_beginning_of_one_long_answer_costs_no_more_than_the_answer() -> None:
    """Completions within one another: a chain of as many segments, deeper than the stack."""
    answer = np.random.default_rng(0).integers(0, 300, 8 * 1100 + 1).tolist()
    group = TokenGroup([7] * 100, [answer[: 8 * n + 1] for n in range(1, 1101)])
    row = pack([group])
    assert row.token_ids == [*group.prompt_ids, *answer[:-1]]
    assert len(row.segments) == 1100
    assert {one.subtree_stop for one in row.segments} == {len(row.token_ids)}
    assert [row.targets[place] for place in row.scored[0][700]] == answer[: 8 * 701 + 1]
