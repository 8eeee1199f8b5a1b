"""From requests to outcomes: render in one thread, wait in the fair queue, compute in another thread, batch by batch.

    RoundRobinLock -> prepare   ->   FairQueue   ->   Pair.score(batch)   ->   each caller's outcomes
             a thread       the loop         a thread

Rendering overlaps with computing and never stops it. A batch holds groups of several callers. One that fails is
computed again group by group, so that only the group to blame fails. After MAX_FAILED_BATCHES that failed whole, health
says so, until one succeeds. A caller that leaves frees its group's place.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from weakref import WeakValueDictionary

from reward_server.engines.caching import CachingEngine
from reward_server.monitoring import Metrics
from reward_server.scheduling.fair_queue import FairQueue, QueueFullError, Ticket, TooLateError
from reward_server.scheduling.round_robin import RoundRobinLock
from reward_server.scoring.model_pair import CompletionResult, Pair, RenderedGroup, ScoredModel
from winnow.serve_config import QueueConfig

# So many batches in a row of which nothing could be computed: the engine is broken, not a group.
MAX_FAILED_BATCHES = 3

# Calls that come together make one batch: the first waits while others still come, each within so many seconds.
GATHER_S = 0.003
MAX_GATHER_S = 0.012

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Caller:
    """Who asks, until when (on time.monotonic's clock), and whether it waits for room in a full queue or is refused."""

    name: str
    deadline: float | None = None
    waits_for_room: bool = False


@dataclass(frozen=True)
class Scored:
    """A group's outcomes, and what they took; `num_cached` completions of the instruct model came from the cache."""

    outcomes: list[CompletionResult]
    num_tokens: int
    num_cached: int = 0
    queue_s: float = 0.0
    compute_s: float = 0.0


@dataclass(frozen=True)
class Waiting:
    """What waits in the queue: the work, and where its result goes."""

    work: RenderedGroup
    result: "asyncio.Future[Scored]"


Group = Ticket[Waiting]


class Scheduler:
    """Computes the works of all callers on one pair. Belongs to the running event loop."""

    def __init__(
        self,
        pair: Pair,
        limits: QueueConfig,
        batch_tokens: int,
        metrics: Metrics,
    ) -> None:
        # A turn is worth a batch: with less, callers of one group each would wait for as many turns as it costs.
        self.queue: FairQueue[Waiting] = FairQueue(limits.max_tokens, limits.max_groups, quantum=batch_tokens)
        self.is_computing = False
        self._num_failed = 0
        self.on_health: Callable[[bool], None] = lambda is_healthy: None
        self._pair = pair
        self._batch_tokens = batch_tokens
        self._metrics = metrics
        self._entrances: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._preparing = RoundRobinLock()
        # One thread: a fast tokenizer refuses to be borrowed by two.
        self._preparer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prepare")
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="score")
        self._has_work = asyncio.Event()
        self._has_room = asyncio.Event()
        self._running = asyncio.ensure_future(self._run())

    async def score(self, prepare: Callable[[], RenderedGroup], caller: Caller) -> Scored:
        """The outcomes of a group. Raises QueueFullError, TooLateError, what `prepare` or the engine raises."""
        async with self._entrance(caller):
            work = await self._prepared(prepare, caller)
            if not work.num_tokens:  # nothing of it can be scored: the engines have no part in it
                return Scored(self._pair.score([work])[0], 0)
            waiting = Waiting(work, asyncio.get_running_loop().create_future())
            ticket = Ticket(caller.name, work.num_tokens, waiting, time.monotonic(), caller.deadline)
            await self._admit(ticket, caller)
        self._has_work.set()
        try:
            return await waiting.result
        finally:
            if self.queue.discard(ticket):
                self._metrics.dropped.labels("caller_left").inc()
            self._made_room()

    def close(self) -> None:
        """Drop what waits; what is being computed ends by itself."""
        self._running.cancel()
        for executor in (self._preparer, self._worker):
            executor.shutdown(wait=False, cancel_futures=True)

    def _entrance(self, caller: Caller) -> AbstractAsyncContextManager[object]:
        """Of a client's groups that would wait for room, one at a time does: the others wait in line for that."""
        if not caller.waits_for_room:
            return nullcontext()
        return self._entrances.setdefault(caller.name, asyncio.Lock())

    async def _prepared(self, prepare: Callable[[], RenderedGroup], caller: Caller) -> RenderedGroup:
        """Render a group when it is its client's turn, if there is room by then. Raises QueueFullError."""
        try:
            while True:
                await self._wait_for_room(caller)
                async with self._preparing.of(caller.name):
                    if not self.queue.is_full(caller.name):
                        return await asyncio.get_running_loop().run_in_executor(self._preparer, prepare)
        finally:
            self._made_room()

    async def _wait_for_room(self, caller: Caller) -> None:
        """Before a group is even rendered: a refusal should cost little. Raises QueueFullError."""
        while self.queue.is_full(caller.name, self._preparing.num_of[caller.name], self._preparing.num):
            if not caller.waits_for_room:
                raise QueueFullError(self.queue.retry_s())
            await self._room()

    async def _admit(self, ticket: Group, caller: Caller) -> None:
        while True:
            try:
                return self.queue.offer(ticket, time.monotonic())
            except QueueFullError:
                if not caller.waits_for_room:
                    raise
            await self._room()

    async def _room(self) -> None:
        """Wait until something leaves the queue."""
        self._has_room.clear()
        await self._has_room.wait()

    def _made_room(self) -> None:
        self._has_room.set()

    async def _run(self) -> None:
        """Compute batch after batch."""
        while True:
            if not self._has_work.is_set():
                await self._has_work.wait()
                await self._gather()
            batch, late = self.queue.take(self._batch_tokens, time.monotonic())
            self._made_room()
            for ticket in late:
                self._metrics.dropped.labels("too_late").inc()
                _fail(ticket, TooLateError("its turn came too late for its deadline"))
            if batch:
                await self._compute(batch)
            if not self.queue.groups:
                self._has_work.clear()

    async def _gather(self) -> None:
        """Wait until no more groups come, or long enough."""
        until, num_waiting = time.monotonic() + MAX_GATHER_S, 0
        while (self._preparing.num or self.queue.groups > num_waiting) and time.monotonic() < until:
            num_waiting = self.queue.groups
            await asyncio.sleep(GATHER_S)

    def _note(self, *, is_failed: bool) -> None:
        """Tell when batch after batch has failed, and when one succeeds again."""
        was_healthy = self._num_failed < MAX_FAILED_BATCHES
        self._num_failed = self._num_failed + 1 if is_failed else 0
        is_healthy = self._num_failed < MAX_FAILED_BATCHES
        if is_healthy != was_healthy:
            log.warning(
                "the engine computes again" if is_healthy else "the engine fails batch after batch: NOT_SERVING"
            )
            self.on_health(is_healthy)

    async def _compute(self, batch: Sequence[Group]) -> None:
        started = time.monotonic()
        works = [ticket.item.work for ticket in batch]
        self.is_computing = True
        results = await asyncio.get_running_loop().run_in_executor(self._worker, score_each, self._pair, works)
        self.is_computing = False
        ended = time.monotonic()
        self.queue.finished(ended, is_failed=any(isinstance(result, Exception) for result in results))
        self._metrics.computed(sum(ticket.tokens for ticket in batch), ended - started)
        self._note(is_failed=all(isinstance(result, Exception) for result in results))
        for ticket, result in zip(batch, results, strict=True):
            self._metrics.queue_s.observe(started - ticket.arrived)
            if isinstance(result, Exception):
                _fail(ticket, result)
            elif not ticket.item.result.done():
                outcomes, num_cached = result
                ticket.item.result.set_result(
                    Scored(outcomes, ticket.tokens, num_cached, started - ticket.arrived, ended - started)
                )


Result = tuple[list[CompletionResult], int] | Exception


def score_each(pair: Pair, works: Sequence[RenderedGroup]) -> list[Result]:
    """The outcomes of each work and how many came from the cache; where all together fail, one by one."""
    try:
        outcomes = pair.score(works)
        return list(zip(outcomes, _num_cached(pair.instruct, works), strict=True))
    except Exception as error:
        if len(works) == 1:
            return [error]
        log.warning("a batch of %d groups failed (%s); each is computed alone", len(works), type(error).__name__)
        return [result for work in works for result in score_each(pair, [work])]


def _num_cached(side: ScoredModel, works: Sequence[RenderedGroup]) -> list[int]:
    """How many completions of each work the cache knew; the engine was asked for all works' groups in order."""
    if not isinstance(side.engine, CachingEngine):
        return [0] * len(works)
    hits = iter(side.engine.last_hits)
    return [sum(next(hits, 0) for _ in work.instruct_groups) for work in works]


def _fail(ticket: Group, error: Exception) -> None:
    if not ticket.item.result.done():
        ticket.item.result.set_exception(error)
