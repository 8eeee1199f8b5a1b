"""The pipeline from requests to rewards: render in one thread, wait in the queue, compute batches in another thread.

    1. capacity    if the queue is full, a group is refused (backpressure); a group of a stream waits for capacity
    2. rendering   in the render thread under the round-robin lock: one group at a time, clients in rotation
    3. queueing    the fair queue decides which group is next, which is refused and which is too late (fair_queue.py)
    4. batching    an idle server waits some milliseconds for more groups (dynamic batching); a busy server does not
    5. computing   `pair.score(batch)` in the compute thread; each caller gets the results of its group

Example: a batch holds at most 100 tokens, and the batching window is 3 ms. The clients a, b and c send one group of 40
tokens each. Rendering a group takes 1 ms, computing a batch 50 ms.

     0 ms   a's group comes and is rendered; the server is idle
     1 ms   a's group is in the queue, and the batching window opens
     2 ms   b's group comes and is rendered; it is in the queue at 3 ms
     4 ms   the window is over, but a group came meanwhile: wait for another 3 ms
     7 ms   no group came meanwhile: the batch of a's and b's groups, 80 tokens, is computed
    10 ms   c's group comes and is rendered while the batch is computed; it is in the queue at 11 ms
    57 ms   a and b get their results; c's group waits already, so it is computed at once, without a window

If a batch fails, its groups are computed again one by one, so that only the group at fault fails. After
MAX_FAILED_BATCHES batches in a row that failed completely, health reports NOT_SERVING until a batch succeeds. When a
caller leaves, its group leaves the queue.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from weakref import WeakValueDictionary

from reward_server.monitoring import Call, Metrics
from reward_server.scheduling.fair_queue import FairQueue, QueueFullError, Ticket, TooLateError
from reward_server.scheduling.round_robin import RoundRobinLock
from reward_server.scoring.model_pair import Pair, RenderedGroup
from reward_server.scoring.reward import CompletionResult
from winnow.serve_config import QueueConfig

# After so many batches in a row that failed completely, the fault is taken to be the engine's, not a group's.
MAX_FAILED_BATCHES = 3

# An idle server waits for more groups as long as a group comes within each window, MAX_BATCHING_WINDOW_S at most.
BATCHING_WINDOW_S = 0.003
MAX_BATCHING_WINDOW_S = 0.012

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Caller:
    """The client of a group, and its deadline on time.monotonic's clock (None: no deadline).

    While the queue is full, its groups are refused, or wait if `should_wait_for_capacity`.
    """

    name: str
    deadline: float | None = None
    should_wait_for_capacity: bool = False


@dataclass(frozen=True)
class WaitingGroup:
    """A group in the queue, the record of its call, and the future of its results."""

    group: RenderedGroup
    call: Call
    results: "asyncio.Future[list[CompletionResult]]"

    def fail(self, error: Exception) -> None:
        """Give the caller, if it still waits, an error instead of results."""
        if not self.results.done():
            self.results.set_exception(error)


class Scheduler:
    """The scheduler of all callers' groups on one pair of models. Belongs to the running event loop.

    `on_health` is called with False when the engine fails batch after batch, and with True when it computes again.
    """

    def __init__(
        self,
        pair: Pair,
        limits: QueueConfig,
        batch_tokens: int,
        metrics: Metrics,
        on_health: Callable[[bool], None] | None = None,
    ) -> None:
        # The quantum is a whole batch: with less, a group would wait for as many rotations as it costs quanta.
        self.queue: FairQueue[WaitingGroup] = FairQueue(limits.max_tokens, limits.max_groups, quantum=batch_tokens)
        self.is_computing = False
        self._num_failed_batches = 0
        self._on_health = on_health
        self._pair = pair
        self._batch_tokens = batch_tokens
        self._metrics = metrics
        # One lock for each client: a single group of the client waits for capacity, its others wait for the lock.
        self._capacity_locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._capacity_freed = asyncio.Event()
        self._render_lock = RoundRobinLock()
        # One thread: fast tokenizers cannot be used by two threads at once.
        self._render_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="render")
        self._compute_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="compute")
        self._has_work = asyncio.Event()
        self._running = asyncio.ensure_future(self._run())

    async def score(self, render: Callable[[], RenderedGroup], caller: Caller, call: Call) -> list[CompletionResult]:
        """Return the result of each completion of a group, and add the group to the record of its call.

        Raises QueueFullError, TooLateError, and the errors of `render` and of the engine.
        """
        async with self._capacity_lock(caller):
            group = await self._render(render, caller)
            num_tokens = group.num_tokens
            if num_tokens == 0:  # every completion is refused: there is nothing to compute
                results, _ = self._pair.score([group])
                call.add(len(results[0]), num_tokens=0, num_cached=0, queue_s=0.0, compute_s=0.0)
                return results[0]
            waiting = WaitingGroup(group, call, asyncio.get_running_loop().create_future())
            ticket = Ticket(caller.name, num_tokens, waiting, time.monotonic(), caller.deadline)
            await self._offer(ticket, caller)
        self._has_work.set()
        try:
            return await waiting.results
        finally:
            if self.queue.discard(ticket):
                self._metrics.dropped.labels("caller_left").inc()
            self._capacity_freed.set()

    def close(self) -> None:
        """Drop the groups that wait; a batch that is being computed ends by itself."""
        self._running.cancel()
        for thread in (self._render_thread, self._compute_thread):
            thread.shutdown(wait=False, cancel_futures=True)

    def _capacity_lock(self, caller: Caller) -> AbstractAsyncContextManager[object]:
        """Return the lock under which the client's groups wait for capacity, one at a time and in their order."""
        if not caller.should_wait_for_capacity:
            return nullcontext()
        return self._capacity_locks.setdefault(caller.name, asyncio.Lock())

    async def _render(self, render: Callable[[], RenderedGroup], caller: Caller) -> RenderedGroup:
        """Render a group when its client is next in rotation. Raises QueueFullError if the queue is full.

        The queue is checked before the lock is taken, because a refusal should cost little, and again under the lock,
        because the queue may be full by then.
        """
        try:
            while True:
                await self._check_capacity(caller)
                async with self._render_lock.hold(caller.name):
                    if not self.queue.is_full(caller.name):
                        return await asyncio.get_running_loop().run_in_executor(self._render_thread, render)
        finally:
            # The group no longer counts as one that is coming, which may leave capacity to another group.
            self._capacity_freed.set()

    async def _check_capacity(self, caller: Caller) -> None:
        """Wait until the queue has capacity, counting the groups that are being rendered. Raises QueueFullError."""
        coming = self._render_lock
        while self.queue.is_full(caller.name, coming.num_requests_of[caller.name], coming.num_requests):
            if not caller.should_wait_for_capacity:
                raise QueueFullError(self.queue.retry_s())
            await self._wait_for_capacity()

    async def _offer(self, ticket: Ticket[WaitingGroup], caller: Caller) -> None:
        """Put a group into the queue, after a wait for capacity if necessary. Raises QueueFullError, TooLateError."""
        while True:
            try:
                self.queue.offer(ticket, time.monotonic())
                return
            except QueueFullError:
                if not caller.should_wait_for_capacity:
                    raise
            await self._wait_for_capacity()

    async def _wait_for_capacity(self) -> None:
        """Wait until a group leaves the queue, or is no longer being rendered."""
        self._capacity_freed.clear()
        await self._capacity_freed.wait()

    async def _run(self) -> None:
        """Take and compute batches until the scheduler is closed."""
        while True:
            if not self._has_work.is_set():
                await self._has_work.wait()
                await self._wait_for_batch()
            batch, late = self.queue.take(self._batch_tokens, time.monotonic())
            self._capacity_freed.set()
            for ticket in late:
                self._metrics.dropped.labels("too_late").inc()
                ticket.item.fail(TooLateError("the deadline could no longer be met when the group was next"))
            if batch:
                await self._compute(batch)
            if not self.queue.num_groups:
                self._has_work.clear()

    async def _wait_for_batch(self) -> None:
        """Wait for more groups (dynamic batching), until a window passes without a new group or one being rendered."""
        deadline = time.monotonic() + MAX_BATCHING_WINDOW_S
        num_seen = 0
        while self._render_lock.num_requests or self.queue.num_groups > num_seen:
            if time.monotonic() >= deadline:
                return
            num_seen = self.queue.num_groups
            await asyncio.sleep(BATCHING_WINDOW_S)

    async def _compute(self, batch: Sequence[Ticket[WaitingGroup]]) -> None:
        """Compute a batch in the compute thread, and give each caller its results or its error."""
        started = time.monotonic()
        groups = [ticket.item.group for ticket in batch]
        self.is_computing = True
        results = await asyncio.get_running_loop().run_in_executor(self._compute_thread, score_each, self._pair, groups)
        self.is_computing = False
        ended = time.monotonic()
        compute_s = ended - started
        has_failed = [isinstance(result, Exception) for result in results]
        self.queue.finish_batch(ended, is_failed=any(has_failed))
        self._metrics.count_batch(sum(ticket.num_tokens for ticket in batch), compute_s)
        self._update_health(is_failed=all(has_failed))
        for ticket, result in zip(batch, results, strict=True):
            waiting = ticket.item
            queue_s = started - ticket.arrived_at
            self._metrics.queue_s.observe(queue_s)
            if isinstance(result, Exception):
                waiting.fail(result)
            elif not waiting.results.done():
                completion_results, num_cached = result
                waiting.call.add(len(completion_results), ticket.num_tokens, num_cached, queue_s, compute_s)
                waiting.results.set_result(completion_results)

    def _update_health(self, *, is_failed: bool) -> None:
        """Count failed batches, and report when the engine breaks or works again."""
        was_healthy = self._num_failed_batches < MAX_FAILED_BATCHES
        if is_failed:
            self._num_failed_batches += 1
        else:
            self._num_failed_batches = 0
        is_healthy = self._num_failed_batches < MAX_FAILED_BATCHES
        if is_healthy == was_healthy:
            return
        if is_healthy:
            log.warning("the engine computes again")
        else:
            log.warning("the engine fails batch after batch: NOT_SERVING")
        if self._on_health is not None:
            self._on_health(is_healthy)


GroupResult = tuple[list[CompletionResult], int] | Exception


def score_each(pair: Pair, groups: Sequence[RenderedGroup]) -> list[GroupResult]:
    """Return for each group its results and the number of its completions that were cached, or its error.

    The groups are computed in one batch. If the batch fails, each group is computed alone.
    """
    try:
        results, num_cached = pair.score(groups)
        return list(zip(results, num_cached, strict=True))
    except Exception as error:
        if len(groups) == 1:
            return [error]
        log.warning("a batch of %d groups failed (%s); each is computed alone", len(groups), type(error).__name__)
    group_results: list[GroupResult] = []
    for group in groups:
        group_results.extend(score_each(pair, [group]))
    return group_results
