"""An exact result cache before an engine: what was computed is not computed again.

    key    = BLAKE2b(side of the pair, weight hash, template hash, prompt's token ids, completion's token ids)
    value  = the completion's log-probabilities, where all are finite

Both sides of a pair share one cache of bounded size, and no values: the hash of large weights is one of samples. What
was not asked for longest goes first. A value is what an earlier batch gave: equal to computing it again up to the
rounding that differs between batches.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence

import numpy as np

from reward_server.engines import Logprobs, ScoringEngine, TokenGroup

# What a key, its entry and an array's header take beside the numbers, in bytes.
ENTRY_BYTES = 320
SEPARATOR = b"\0"


class ResultCache:
    """Log-probabilities by key, in at most `max_bytes`. Safe for threads."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self.hits = 0
        self.misses = 0
        self._values: OrderedDict[bytes, Logprobs] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: bytes) -> Logprobs | None:
        """What is known, counted as a hit or a miss."""
        with self._lock:
            values = self._values.get(key)
            if values is None:
                self.misses += 1
                return None
            self.hits += 1
            self._values.move_to_end(key)
            return values

    def put(self, key: bytes, values: Logprobs) -> None:
        """Keep finite values, read-only; older ones make room."""
        size = values.nbytes + ENTRY_BYTES
        if size > self.max_bytes or not np.isfinite(values).all():
            return
        kept = values.copy()  # a view would keep its whole batch alive
        kept.setflags(write=False)
        with self._lock:
            if key in self._values:
                return
            self._values[key] = kept
            self.num_bytes += size
            while self.num_bytes > self.max_bytes:
                _, oldest = self._values.popitem(last=False)
                self.num_bytes -= oldest.nbytes + ENTRY_BYTES


class CachingEngine:
    """An engine that asks `inner` only for what the cache does not know, and for each of it once."""

    def __init__(
        self, inner: ScoringEngine, cache: ResultCache, side: str, weight_hash: str, template_hash: str
    ) -> None:
        self.inner = inner
        self.cache = cache
        self.last_hits: list[int] = []
        """Of the last call: how many completions of each group were known."""
        self._seed = SEPARATOR.join([side.encode(), weight_hash.encode(), template_hash.encode(), b""])

    @property
    def dtype(self) -> str:
        """As the inner engine's."""
        return self.inner.dtype

    @property
    def device(self) -> str:
        """As the inner engine's."""
        return self.inner.device

    @property
    def vocab_size(self) -> int:
        """As the inner engine's."""
        return self.inner.vocab_size

    @property
    def max_tokens(self) -> int | None:
        """As the inner engine's."""
        return self.inner.max_tokens

    def close(self) -> None:
        """As the inner engine's."""
        self.inner.close()

    def logprobs(self, groups: Sequence[TokenGroup]) -> list[list[Logprobs]]:
        """As `ScoringEngine` says; arrays that come from the cache are read-only."""
        keys = [list(self._keys(group)) for group in groups]
        known = {key: self.cache.get(key) for of_group in keys for key in of_group}
        self.last_hits = [sum(known[key] is not None for key in of_group) for of_group in keys]
        computed = self._computed(groups, keys, {key for key, values in known.items() if values is None})
        for key, values in computed.items():
            self.cache.put(key, values)
        return [[_either(known[key], computed.get(key)) for key in of_group] for of_group in keys]

    def _computed(
        self, groups: Sequence[TokenGroup], keys: Sequence[Sequence[bytes]], missing: set[bytes]
    ) -> dict[bytes, Logprobs]:
        """The values of the keys that are missing, which are used up; the first group that has one computes it."""
        asked: list[TokenGroup] = []
        asked_keys: list[list[bytes]] = []
        for group, of_group in zip(groups, keys, strict=True):
            wanted = {key: ids for key, ids in zip(of_group, group.completions, strict=True) if key in missing}
            if wanted:
                missing.difference_update(wanted)
                asked.append(TokenGroup(group.prompt_ids, list(wanted.values())))
                asked_keys.append(list(wanted))
        answers = self.inner.logprobs(asked) if asked else []
        return {
            key: values
            for of_group, answer in zip(asked_keys, answers, strict=True)
            for key, values in zip(of_group, answer, strict=True)
        }

    def _keys(self, group: TokenGroup) -> Iterator[bytes]:
        prompt = np.asarray(group.prompt_ids, dtype=np.uint32)
        shared = hashlib.blake2b(self._seed + len(prompt).to_bytes(8, "little") + prompt.tobytes(), digest_size=32)
        for completion in group.completions:
            own = shared.copy()
            own.update(np.asarray(completion, dtype=np.uint32).tobytes())
            yield own.digest()


def _either(known: Logprobs | None, computed: Logprobs | None) -> Logprobs:
    values = computed if known is None else known
    assert values is not None  # what is not known was computed
    return values
