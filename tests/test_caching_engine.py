"""The result cache before an engine: equal answers, nothing computed twice, its bound, and what it does not keep."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward_server.engines import Logprobs, TokenGroup
from reward_server.engines.caching import ENTRY_BYTES, CachingEngine, ResultCache


class CountingEngine:
    """An engine whose log-probabilities are a formula of the ids, and that notes what it computed."""

    dtype, device, vocab_size, max_tokens = "float32", "cpu", 100, 50

    def __init__(self) -> None:
        self.computed: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def logprobs(self, groups: Sequence[TokenGroup]) -> list[list[Logprobs]]:
        for group in groups:
            self.computed += [(tuple(group.prompt_ids), tuple(ids)) for ids in group.completions]
        return [[self.values(group, ids) for ids in group.completions] for group in groups]

    def close(self) -> None:
        pass

    def values(self, group: TokenGroup, ids: Sequence[int]) -> Logprobs:
        scale = 1 + sum((place + 1) * one for place, one in enumerate(group.prompt_ids))
        return np.array([-one / scale if one != 99 else -np.inf for one in ids], dtype=np.float32)


@pytest.fixture
def inner() -> CountingEngine:
    return CountingEngine()


def caching(inner: CountingEngine, max_bytes: int = 10**6, template: str = "t") -> CachingEngine:
    return CachingEngine(inner, ResultCache(max_bytes), "instruct", "w", template)


def test_what_was_computed_is_not_computed_again(inner: CountingEngine) -> None:
    engine = caching(inner)
    first = engine.logprobs([TokenGroup([1, 2], [[3], [4, 5]])])
    again = engine.logprobs([TokenGroup([1, 2], [[4, 5], [6], [3]])])
    assert inner.computed == [((1, 2), (3,)), ((1, 2), (4, 5)), ((1, 2), (6,))]
    assert again[0][0].tolist() == first[0][1].tolist()
    assert again[0][2].tolist() == first[0][0].tolist()
    assert engine.last_hits == [2]
    assert (engine.cache.hits, engine.cache.misses) == (2, 3)


def test_duplicates_of_one_call_are_computed_once(inner: CountingEngine) -> None:
    answers = caching(inner).logprobs([TokenGroup([1], [[3], [3]]), TokenGroup([1], [[3], [4]])])
    assert inner.computed == [((1,), (3,)), ((1,), (4,))]
    assert [len(of_group) for of_group in answers] == [2, 2]


def test_prompt_and_completion_are_told_apart(inner: CountingEngine) -> None:
    engine = caching(inner)
    engine.logprobs([TokenGroup([1], [[2, 3]])])
    engine.logprobs([TokenGroup([1, 2], [[3]])])
    assert len(inner.computed) == 2


def test_sides_models_and_templates_share_no_results(inner: CountingEngine) -> None:
    cache = ResultCache(10**6)
    seeds = [("a", "w", "t"), ("b", "w", "t"), ("a", "w", "u"), ("a", "v", "t"), ("a", "w\0t", "")]
    for side, weights, template in seeds:
        CachingEngine(inner, cache, side, weights, template).logprobs([TokenGroup([1], [[2]])])
    assert len(inner.computed) == len(seeds)


def test_what_is_not_finite_is_computed_again(inner: CountingEngine) -> None:
    engine = caching(inner)
    for _ in range(2):
        engine.logprobs([TokenGroup([1], [[99], [2]])])
    assert inner.computed.count(((1,), (99,))) == 2
    assert inner.computed.count(((1,), (2,))) == 1


def test_what_was_not_asked_for_longest_goes_first(inner: CountingEngine) -> None:
    engine = caching(inner, max_bytes=2 * (ENTRY_BYTES + 4))
    for ids in ([1], [2], [1], [3], [1], [2]):
        engine.logprobs([TokenGroup([7], [ids])])
    assert [ids for _, ids in inner.computed] == [(1,), (2,), (3,), (2,)]


def test_an_answer_from_the_cache_cannot_be_changed(inner: CountingEngine) -> None:
    engine = caching(inner)
    engine.logprobs([TokenGroup([1], [[2]])])
    with pytest.raises(ValueError, match="read-only"):
        engine.logprobs([TokenGroup([1], [[2]])])[0][0][0] = 0.0


def test_it_says_of_itself_what_the_inner_engine_says(inner: CountingEngine) -> None:
    engine = caching(inner)
    own = (engine.dtype, engine.device, engine.vocab_size, engine.max_tokens)
    assert own == ("float32", "cpu", 100, 50)


ids = st.lists(st.integers(0, 3), min_size=1, max_size=3)
groups = st.builds(TokenGroup, ids, st.lists(ids, min_size=1, max_size=4))


@given(st.lists(st.lists(groups, max_size=4), max_size=6), st.integers(1, 4000))
def test_any_calls_are_answered_as_without_a_cache_and_within_its_bound(
    calls: list[list[TokenGroup]], max_bytes: int
) -> None:
    inner, plain = CountingEngine(), CountingEngine()
    engine = caching(inner, max_bytes)
    for call in calls:
        ours, theirs = engine.logprobs(call), plain.logprobs(call)
        assert [[one.tolist() for one in group] for group in ours] == [[o.tolist() for o in g] for g in theirs]
        assert engine.cache.num_bytes <= max_bytes
