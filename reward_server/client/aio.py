"""The client for asyncio programs: the methods of `RewardClient`, awaited. Import it from reward_server.client.

    async with AsyncRewardClient("localhost:50051") as client:
        async for rewards in client.score_many(groups): ...

A client belongs to the event loop that first uses it. Like the blocking client it makes one unary call for each
request; the server's ScoreStream is for callers in other languages.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self

import grpc

from reward_server.client.base import HEALTH_REQUEST, BaseClient, Progress, is_result_due
from reward_server.client.connection import ServerStubs, open_stubs
from reward_server.client.requests import has_completions, listed, merge_options, requests_of
from reward_server.client.responses import ScoredGroup, scored_group
from reward_server.client.retries import POLL, CallAttempts, failure_of
from reward_server.client.server_info import ServerInfo, parse_server_info
from reward_server.groups import CompletionInput, Group, Prompt
from reward_server.pb import reward_pb2 as pb
from winnow.errors import ServerError, UsageError
from winnow.reward_options import RewardOptions


class AsyncRewardClient(BaseClient):
    """A connection to one or several reward servers, for asyncio; an async context manager, for one event loop.

    It has the arguments, methods and errors of `RewardClient`.
    """

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; calls in progress end with a ServerError."""
        self._is_closed = True
        for stubs in self._stubs:
            await stubs.channel.close()

    async def score(
        self,
        prompt: Prompt,
        completions: Iterable[CompletionInput],
        options: RewardOptions | None = None,
        **keywords: Any,
    ) -> ScoredGroup:
        """Return the rewards of one prompt's completions, in order; see `RewardClient.score`."""
        return await self._score(Group(prompt, listed(completions)), merge_options(options, keywords))

    async def score_many(
        self,
        groups: Iterable[Group] | AsyncIterable[Group],
        options: RewardOptions | None = None,
        *,
        concurrency: int | None = None,
        on_progress: Progress | None = None,
        **keywords: Any,
    ) -> AsyncIterator[ScoredGroup]:
        """Yield the rewards of each group, in order; see `RewardClient.score_many`. `groups` may be asynchronous."""
        num_concurrent = self._num_concurrent(concurrency)
        chosen = merge_options(options, keywords)
        num_done = 0
        async with aclosing(self._score_in_order(groups, chosen, num_concurrent)) as results:
            async for rewards in results:
                num_done += 1
                if on_progress is not None:
                    on_progress(num_done)
                yield rewards

    async def server_info(self) -> ServerInfo:
        """Return the models that a server has loaded, and its limits; see `RewardClient.server_info`."""
        return await self._get_server_info(self._new_attempts())

    async def wait_until_ready(self, timeout_s: float) -> None:
        """Return once a server serves; see `RewardClient.wait_until_ready`."""
        attempts = CallAttempts(self._balancer, POLL, timeout_s)
        while True:
            response = await self._call(lambda stubs: stubs.check_health, HEALTH_REQUEST, attempts)
            if self._is_serving(response, attempts):
                return
            await asyncio.sleep(POLL.first_pause_s)

    async def _score_in_order(
        self, groups: Iterable[Group] | AsyncIterable[Group], options: RewardOptions, num_concurrent: int
    ) -> AsyncGenerator[ScoredGroup]:
        """Yield the rewards of each group, in order. Cancel the tasks in progress if the caller stops early."""
        capacity = asyncio.Semaphore(num_concurrent)

        async def score(group: Group) -> ScoredGroup:
            async with capacity:
                return await self._score(group, options)

        pending: deque[asyncio.Task[ScoredGroup]] = deque()
        try:
            async for group in _read(groups):
                pending.append(asyncio.ensure_future(score(group)))
                if is_result_due(len(pending), num_concurrent, pending[0].done()):
                    yield await pending.popleft()
            while pending:
                yield await pending.popleft()
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    async def _score(self, group: Group, options: RewardOptions) -> ScoredGroup:
        attempts = self._new_attempts()
        if not has_completions(group):
            return ScoredGroup()
        if self._limits is None:
            self._limits = await self._get_server_info(attempts)
        requests = requests_of(group, options, self._limits)
        responses = []
        for request in requests.requests:
            responses.append(await self._call(lambda stubs: stubs.score, request, attempts))
        return scored_group(requests, responses, options)

    async def _get_server_info(self, attempts: CallAttempts) -> ServerInfo:
        request = pb.GetServerInfoRequest()
        return parse_server_info(await self._call(lambda stubs: stubs.get_server_info, request, attempts))

    async def _call(self, method_of: Callable[[ServerStubs], Any], request: Any, attempts: CallAttempts) -> Any:
        """Call a method of one server after another until there is a response. Raises ServerError, UsageError."""
        while True:
            with attempts.pick_server() as index:
                method = method_of(self._opened_stubs()[index])
                try:
                    return await method(request, timeout=attempts.remaining_s, metadata=self._settings.metadata)
                except grpc.RpcError as error:
                    failure = failure_of(error)
                except asyncio.CancelledError:
                    # gRPC raises it too when `close` has closed the channel; a task that was cancelled must pass it on.
                    if self._is_closed and not _is_task_cancelled():
                        raise ServerError("the call was cancelled: its client was closed") from None
                    raise
            await asyncio.sleep(attempts.pause_after(failure, index))

    def _opened_stubs(self) -> list[ServerStubs]:
        """Return the stubs of each server. Opens them at the first call, in its event loop. Raises UsageError."""
        if self._is_closed:
            raise UsageError("this client is closed; make a new one")
        if not self._stubs:
            self._stubs = open_stubs(grpc.aio, self._settings, self._credentials)
        return self._stubs


def _is_task_cancelled() -> bool:
    """Return True if the running task was cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _read(groups: Iterable[Group] | AsyncIterable[Group]) -> AsyncIterator[Group]:
    if isinstance(groups, AsyncIterable):
        async for group in groups:
            yield group
    else:
        for group in groups:
            yield group
