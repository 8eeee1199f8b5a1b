"""LogprobCache: equal results, nothing computed twice, its bound, the LRU order, and the entries it refuses."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward_server.engines import Logprobs, TokenGroup
from reward_server.engines.caching import ENTRY_BYTES, LogprobCache

NAMESPACE = ("instruct", "weights", "template")
NOT_FINITE = 99


class CountingEngine:
    """An engine whose log-probabilities are a formula of the ids; it records what it computed."""

    def __init__(self) -> None:
        self.computed: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def logprobs(self, groups: Sequence[TokenGroup]) -> list[list[Logprobs]]:
        logprobs = []
        for group in groups:
            self.computed += [(tuple(group.prompt_ids), tuple(ids)) for ids in group.completions]
            logprobs.append([self.formula(group, ids) for ids in group.completions])
        return logprobs

    def formula(self, group: TokenGroup, ids: Sequence[int]) -> Logprobs:
        scale = 1 + sum((position + 1) * token_id for position, token_id in enumerate(group.prompt_ids))
        values = np.array(ids, dtype=np.float32) / -scale
        values[np.array(ids) == NOT_FINITE] = -np.inf
        return values.astype(np.float32)


@pytest.fixture
def engine() -> CountingEngine:
    return CountingEngine()


@pytest.fixture
def cache() -> LogprobCache:
    return LogprobCache(10**6)


def test_a_cached_completion_is_not_computed_again(engine: CountingEngine, cache: LogprobCache) -> None:
    first, first_hits = cache.logprobs(engine.logprobs, [TokenGroup([1, 2], [[3], [4, 5]])], NAMESPACE)
    second, second_hits = cache.logprobs(engine.logprobs, [TokenGroup([1, 2], [[4, 5], [6], [3]])], NAMESPACE)
    assert engine.computed == [((1, 2), (3,)), ((1, 2), (4, 5)), ((1, 2), (6,))]
    assert second[0][0].tolist() == first[0][1].tolist()
    assert second[0][2].tolist() == first[0][0].tolist()
    assert (first_hits, second_hits) == ([0], [2])
    assert (cache.num_hits, cache.num_misses) == (2, 3)


def test_hits_are_counted_by_group(engine: CountingEngine, cache: LogprobCache) -> None:
    cache.logprobs(engine.logprobs, [TokenGroup([1], [[3], [4]])], NAMESPACE)
    groups = [TokenGroup([1], [[3], [5]]), TokenGroup([2], [[3]]), TokenGroup([1], [[4], [3], [3]])]
    logprobs, num_cached = cache.logprobs(engine.logprobs, groups, NAMESPACE)
    assert num_cached == [1, 0, 3]
    assert [len(values) for values in logprobs] == [2, 1, 3]


def test_an_engine_is_not_called_where_every_completion_is_cached(engine: CountingEngine, cache: LogprobCache) -> None:
    groups = [TokenGroup([1], [[3]])]
    cache.logprobs(engine.logprobs, groups, NAMESPACE)

    def fail(groups: Sequence[TokenGroup]) -> list[list[Logprobs]]:
        raise AssertionError(groups)

    assert cache.logprobs(fail, groups, NAMESPACE)[1] == [1]
    assert cache.logprobs(fail, [], NAMESPACE) == ([], [])


def test_duplicates_within_a_call_are_computed_once(engine: CountingEngine, cache: LogprobCache) -> None:
    groups = [TokenGroup([1], [[3], [3]]), TokenGroup([1], [[3], [4]])]
    logprobs, num_cached = cache.logprobs(engine.logprobs, groups, NAMESPACE)
    assert engine.computed == [((1,), (3,)), ((1,), (4,))]
    assert [len(values) for values in logprobs] == [2, 2]
    assert num_cached == [0, 0]


def test_keys_separate_prompt_and_completion(engine: CountingEngine, cache: LogprobCache) -> None:
    cache.logprobs(engine.logprobs, [TokenGroup([1], [[2, 3]])], NAMESPACE)
    cache.logprobs(engine.logprobs, [TokenGroup([1, 2], [[3]])], NAMESPACE)
    assert len(engine.computed) == 2


def test_models_weights_and_templates_share_no_entries(engine: CountingEngine, cache: LogprobCache) -> None:
    namespaces = [("a", "w", "t"), ("b", "w", "t"), ("a", "w", "u"), ("a", "v", "t"), ("a", "w\0t", "")]
    for namespace in namespaces:
        cache.logprobs(engine.logprobs, [TokenGroup([1], [[2]])], namespace)
    assert len(engine.computed) == len(namespaces)


def test_values_that_are_not_finite_are_not_cached(engine: CountingEngine, cache: LogprobCache) -> None:
    for _ in range(2):
        cache.logprobs(engine.logprobs, [TokenGroup([1], [[NOT_FINITE], [2]])], NAMESPACE)
    assert engine.computed.count(((1,), (NOT_FINITE,))) == 2
    assert engine.computed.count(((1,), (2,))) == 1


def test_the_least_recently_used_entry_is_evicted_first(engine: CountingEngine) -> None:
    cache = LogprobCache(2 * (ENTRY_BYTES + 4))
    for ids in ([1], [2], [1], [3], [1], [2]):
        cache.logprobs(engine.logprobs, [TokenGroup([7], [ids])], NAMESPACE)
    assert [ids for _, ids in engine.computed] == [(1,), (2,), (3,), (2,)]


def test_cached_values_are_read_only(engine: CountingEngine, cache: LogprobCache) -> None:
    cache.logprobs(engine.logprobs, [TokenGroup([1], [[2]])], NAMESPACE)
    logprobs, _ = cache.logprobs(engine.logprobs, [TokenGroup([1], [[2]])], NAMESPACE)
    with pytest.raises(ValueError, match="read-only"):
        logprobs[0][0][0] = 0.0


token_ids = st.lists(st.integers(0, 3), min_size=1, max_size=3)
token_groups = st.builds(TokenGroup, token_ids, st.lists(token_ids, min_size=1, max_size=4))


@given(st.lists(st.lists(token_groups, max_size=4), max_size=6), st.integers(1, 4000))
def test_a_cache_changes_no_result_and_keeps_its_bound(calls: list[list[TokenGroup]], max_bytes: int) -> None:
    cached_engine = CountingEngine()
    plain_engine = CountingEngine()
    cache = LogprobCache(max_bytes)
    for groups in calls:
        cached, _ = cache.logprobs(cached_engine.logprobs, groups, NAMESPACE)
        for cached_values, values in zip(cached, plain_engine.logprobs(groups), strict=True):
            assert [array.tolist() for array in cached_values] == [array.tolist() for array in values]
        assert cache.num_bytes <= max_bytes
