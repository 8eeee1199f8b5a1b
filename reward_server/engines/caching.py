"""An LRU cache of log-probabilities: a completion that was computed before is not computed again.

    key    = BLAKE2b(instruct or base, weight hash, template hash, the prompt's token ids, the completion's token ids)
    value  = the completion's log-probabilities, if all are finite

Both models of a pair share one cache of bounded size. The model's name keeps their entries apart, because the hash of
large weights covers only samples of them. The least recently used entry is evicted first. A value comes from an earlier
batch: it equals a new computation up to the rounding that differs between batches.
"""

import hashlib
import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np

from reward_server.engines import Logprobs, TokenGroup

# Bytes of an entry besides its numbers: the key, the array's header, the place in the dict.
ENTRY_BYTES = 320
SEPARATOR = b"\0"

Compute = Callable[[Sequence[TokenGroup]], list[list[Logprobs]]]


class LogprobCache:
    """Log-probabilities by key, in at most `max_bytes`. Safe for threads."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self.num_hits = 0
        self.num_misses = 0
        self._entries: OrderedDict[bytes, Logprobs] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: bytes) -> Logprobs | None:
        """Return the value of a key, or None; count a hit or a miss."""
        with self._lock:
            values = self._entries.get(key)
            if values is None:
                self.num_misses += 1
                return None
            self.num_hits += 1
            self._entries.move_to_end(key)
            return values

    def put(self, key: bytes, values: Logprobs) -> None:
        """Store a read-only copy of the values if all are finite; evict the least recently used entries if needed."""
        num_bytes = values.nbytes + ENTRY_BYTES
        if num_bytes > self.max_bytes or not np.isfinite(values).all():
            return
        stored = values.copy()  # a view would keep the array of its whole batch in memory
        stored.setflags(write=False)
        with self._lock:
            if key in self._entries:
                return
            self._entries[key] = stored
            self.num_bytes += num_bytes
            while self.num_bytes > self.max_bytes:
                _, evicted = self._entries.popitem(last=False)
                self.num_bytes -= evicted.nbytes + ENTRY_BYTES

    def logprobs(
        self, compute: Compute, groups: Sequence[TokenGroup], namespace: Sequence[str]
    ) -> tuple[list[list[Logprobs]], list[int]]:
        """Return the log-probabilities of each group's completions, and how many of each group were in the cache.

        `compute` is called at most once, with each missing completion once, in the first group that holds it.
        `namespace` names everything besides token ids that decides the values. Arrays from the cache are read-only.
        """
        logprobs_of_key: dict[bytes, Logprobs] = {}
        keys_of_groups: list[list[bytes]] = []
        num_cached: list[int] = []
        missing_groups: list[TokenGroup] = []
        missing_keys: dict[bytes, None] = {}  # in the order of the missing completions
        for group in groups:
            keys = _keys(group, namespace)
            missing_completions: list[Sequence[int]] = []
            num_hits = 0
            for key, completion in zip(keys, group.completions, strict=True):
                values = self.get(key)
                if values is not None:
                    logprobs_of_key[key] = values
                    num_hits += 1
                elif key not in missing_keys:
                    missing_keys[key] = None
                    missing_completions.append(completion)
            if missing_completions:
                missing_groups.append(TokenGroup(group.prompt_ids, missing_completions))
            keys_of_groups.append(keys)
            num_cached.append(num_hits)

        if missing_groups:
            computed = itertools.chain.from_iterable(compute(missing_groups))
            for key, values in zip(missing_keys, computed, strict=True):
                logprobs_of_key[key] = values
                self.put(key, values)

        logprobs = []
        for keys in keys_of_groups:
            logprobs.append([logprobs_of_key[key] for key in keys])
        return logprobs, num_cached


def _keys(group: TokenGroup, namespace: Sequence[str]) -> list[bytes]:
    """Return the key of each completion of a group."""
    prompt_ids = np.asarray(group.prompt_ids, dtype=np.uint32)
    prompt_hash = hashlib.blake2b(digest_size=32)
    for name in namespace:
        prompt_hash.update(name.encode() + SEPARATOR)
    prompt_hash.update(len(prompt_ids).to_bytes(8, "little") + prompt_ids.tobytes())
    keys = []
    for completion in group.completions:
        completion_hash = prompt_hash.copy()
        completion_hash.update(np.asarray(completion, dtype=np.uint32).tobytes())
        keys.append(completion_hash.digest())
    return keys
