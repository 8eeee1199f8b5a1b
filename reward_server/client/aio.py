"""The client for asyncio programs: the methods of `RewardClient`, awaited. Import it from reward_server.client.

    async with AsyncRewardClient("localhost:50051") as client:
        async for scores in client.score_many(groups): ...

A client belongs to the event loop that first uses it.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from types import TracebackType
from typing import Any, Self, Unpack

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from reward_server.certificates import File
from reward_server.client.concurrency import POLL, SERVICE_NAME, Progress, check_concurrency, is_time_to_answer
from reward_server.client.connection import CHECK_HEALTH, SCORE, SERVER_INFO, Address, ConnectionSettings, ServerStubs
from reward_server.client.requests import (
    Limits,
    OptionKeywords,
    RewardOptions,
    has_completions,
    limits_of,
    listed,
    options_of,
    requests_of,
)
from reward_server.client.responses import ScoredGroup, scored_group
from reward_server.client.retries import CallAttempts, LoadBalancer, RetryPolicy, check_timeout, failure_of
from reward_server.groups import CompletionInput, Group, Prompt
from reward_server.pb import reward_pb2 as pb
from winnow.errors import ServerError, UsageError


class AsyncRewardClient:
    """A connection to one or several reward servers; an async context manager. Arguments as of `RewardClient`."""

    def __init__(
        self,
        address: Address,
        timeout_s: float = 600.0,
        *,
        token: str | None = None,
        tls_ca: File | None = None,
        tls_certificate: File | None = None,
        tls_key: File | None = None,
        retries: RetryPolicy | None = None,
    ) -> None:
        self._access = ConnectionSettings(address, token, tls_ca, tls_certificate, tls_key)
        self._access.credentials()  # of a file that cannot be used this raises here and not at the first call
        self.address = ",".join(self._access.addresses)
        self.timeout_s = check_timeout(timeout_s)
        self._retries = retries or RetryPolicy()
        self._servers = LoadBalancer(self._access.addresses)
        self._links: list[ServerStubs] = []
        self._limits: Limits | None = None
        self._is_closed = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address!r}, timeout_s={self.timeout_s:g})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; calls in progress end."""
        self._is_closed = True
        links, self._links = self._links, []
        for link in links:
            await link.channel.close()

    async def score(
        self,
        messages: Prompt,
        completions: Iterable[CompletionInput],
        options: RewardOptions | None = None,
        **keywords: Unpack[OptionKeywords],
    ) -> ScoredGroup:
        """As `RewardClient.score`."""
        return await self._score(Group(messages, listed(completions)), options_of(options, keywords))

    async def score_many(
        self,
        groups: Iterable[Group] | AsyncIterable[Group],
        options: RewardOptions | None = None,
        *,
        concurrency: int | None = None,
        on_progress: Progress | None = None,
        **keywords: Unpack[OptionKeywords],
    ) -> AsyncIterator[ScoredGroup]:
        """As `RewardClient.score_many`; `groups` may be read with `async for` too."""
        workers = check_concurrency(concurrency, len(self._access.addresses))
        chosen, turns = options_of(options, keywords), asyncio.Semaphore(workers)
        pending: deque[asyncio.Task[ScoredGroup]] = deque()
        number = 0
        try:
            async for group in _read(groups):
                pending.append(asyncio.ensure_future(self._score_in_turn(group, chosen, turns)))
                if is_time_to_answer(len(pending), workers, pending[0].done()):
                    scored, number = await pending.popleft(), number + 1
                    _tell(on_progress, number)
                    yield scored
            while pending:
                scored, number = await pending.popleft(), number + 1
                _tell(on_progress, number)
                yield scored
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    async def server_info(self) -> pb.GetServerInfoResponse:
        """As `RewardClient.server_info`."""
        course = CallAttempts(self._servers, self._retries, self.timeout_s)
        info: pb.GetServerInfoResponse = await self._call(SERVER_INFO, pb.GetServerInfoRequest(), course)
        return info

    async def wait_until_ready(self, timeout_s: float) -> None:
        """As `RewardClient.wait_until_ready`."""
        course, request = CallAttempts(self._servers, POLL, timeout_s), HealthCheckRequest(service=SERVICE_NAME)
        while True:
            response = await self._call(CHECK_HEALTH, request, course)
            if response.status == HealthCheckResponse.SERVING:
                return
            if course.left_s < POLL.first_pause_s:
                raise ServerError(f"the reward server at {self.address} is not serving: it is starting or stopping")
            await asyncio.sleep(POLL.first_pause_s)

    async def _score_in_turn(self, group: Group, options: RewardOptions, turns: asyncio.Semaphore) -> ScoredGroup:
        async with turns:
            return await self._score(group, options)

    async def _score(self, group: Group, options: RewardOptions) -> ScoredGroup:
        course = CallAttempts(self._servers, self._retries, self.timeout_s)
        if not has_completions(group):
            return ScoredGroup()
        asked = requests_of(group, options, await self._known_limits(course))
        responses = [await self._call(SCORE, request, course) for request in asked.requests]
        return scored_group(asked, responses, options)

    async def _known_limits(self, course: CallAttempts) -> Limits:
        if self._limits is None:
            self._limits = limits_of(await self._call(SERVER_INFO, pb.GetServerInfoRequest(), course))
        return self._limits

    async def _call(self, method: Callable[[ServerStubs], Any], request: Any, course: CallAttempts) -> Any:
        """The answer of whichever server gives it. Raises ServerError, UsageError."""
        while True:
            with course.server() as index:
                call = method(self._link(index))
                try:
                    return await call(request, timeout=course.left_s, metadata=self._access.metadata)
                except grpc.RpcError as error:
                    failure = failure_of(error)
                except asyncio.CancelledError:
                    if self._is_closed and not _is_cancelled():
                        raise ServerError("the call was cancelled: its client was closed") from None
                    raise
            await asyncio.sleep(course.pause_after(failure, index))

    def _link(self, index: int) -> ServerStubs:
        """The link to a server. Channels belong to the running loop, so they are made here. Raises UsageError."""
        if self._is_closed:
            raise UsageError("this client is closed; make a new one")
        if not self._links:
            self._links = self._access.links(grpc.aio)
        return self._links[index]


def _is_cancelled() -> bool:
    """Whether somebody has cancelled the task that runs."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _read(groups: Iterable[Group] | AsyncIterable[Group]) -> AsyncIterator[Group]:
    if isinstance(groups, AsyncIterable):
        async for group in groups:
            yield group
    else:
        for group in groups:
            yield group


def _tell(on_progress: Progress | None, number: int) -> None:
    if on_progress is not None:
        on_progress(number)
