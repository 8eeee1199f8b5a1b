"""The blocking client: `RewardClient`. Import it from reward_server.client, whose docstring shows how to use it."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from reward_server.certificates import File
from reward_server.client.concurrency import POLL, SERVICE_NAME, Progress, check_concurrency, is_time_to_answer
from reward_server.client.connection import (
    CHECK_HEALTH,
    SCORE,
    SERVER_INFO,
    Address,
    ConnectionSettings,
    ServerStubs,
)
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

Item = TypeVar("Item")
Result = TypeVar("Result")


class RewardClient:
    """A connection to one or several reward servers; a context manager. May be shared between threads.

    `timeout_s` bounds the wait for one group's rewards, in seconds, retries included. connection.py says what an
    address may be, retries.py what is tried again.
    """

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
        access = ConnectionSettings(address, token, tls_ca, tls_certificate, tls_key)
        self.address = ",".join(access.addresses)
        self.timeout_s = check_timeout(timeout_s)
        self._retries = retries or RetryPolicy()
        self._metadata = access.metadata
        self._servers = LoadBalancer(access.addresses)
        self._links = access.links(grpc)
        self._limits: Limits | None = None
        self._is_closed = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address!r}, timeout_s={self.timeout_s:g})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; calls in progress end."""
        self._is_closed = True
        for link in self._links:
            link.channel.close()

    def score(
        self,
        messages: Prompt,
        completions: Iterable[CompletionInput],
        options: RewardOptions | None = None,
        **keywords: Unpack[OptionKeywords],
    ) -> ScoredGroup:
        """The scores of one prompt's completions, in order. A group beyond the server's limits is sent in pieces.

        Raises ServerError when no server can be reached or it fails, UsageError when the request is malformed.
        """
        chosen = options_of(options, keywords)
        return self._score(Group(messages, listed(completions)), chosen, _Scope())

    def score_many(
        self,
        groups: Iterable[Group],
        options: RewardOptions | None = None,
        *,
        concurrency: int | None = None,
        on_progress: Progress | None = None,
        **keywords: Unpack[OptionKeywords],
    ) -> Iterator[ScoredGroup]:
        """The scores of group after group, in the order of `groups`, of which few are held at a time.

        `concurrency` groups are in progress at once (default: 8 for each server), and `groups` is read at most four
        times as far ahead. `on_progress` is told how many groups are done. Raises as `score` does; the groups before a
        malformed one have been answered by then.
        """
        workers = check_concurrency(concurrency, len(self._links))
        chosen, scope = options_of(options, keywords), _Scope()
        try:
            with closing(_in_order(lambda group: self._score(group, chosen, scope), groups, workers)) as answers:
                for number, scored in enumerate(answers, start=1):
                    if on_progress is not None:
                        on_progress(number)
                    yield scored
        finally:
            scope.end()

    def server_info(self) -> pb.GetServerInfoResponse:
        """What a server has loaded, and its limits. Raises ServerError."""
        course = CallAttempts(self._servers, self._retries, self.timeout_s)
        info: pb.GetServerInfoResponse = self._call(SERVER_INFO, pb.GetServerInfoRequest(), course, _Scope())
        return info

    def wait_until_ready(self, timeout_s: float) -> None:
        """Return once a server answers and serves. Raises ServerError when none does within `timeout_s` seconds."""
        course, scope = CallAttempts(self._servers, POLL, timeout_s), _Scope()
        request = HealthCheckRequest(service=SERVICE_NAME)
        while True:
            response = self._call(CHECK_HEALTH, request, course, scope)
            if response.status == HealthCheckResponse.SERVING:
                return
            if course.left_s < POLL.first_pause_s:
                raise ServerError(f"the reward server at {self.address} is not serving: it is starting or stopping")
            scope.pause(POLL.first_pause_s)

    def _score(self, group: Group, options: RewardOptions, scope: "_Scope") -> ScoredGroup:
        course = CallAttempts(self._servers, self._retries, self.timeout_s)
        if not has_completions(group):
            return ScoredGroup()
        asked = requests_of(group, options, self._known_limits(course, scope))
        responses = [self._call(SCORE, request, course, scope) for request in asked.requests]
        return scored_group(asked, responses, options)

    def _known_limits(self, course: CallAttempts, scope: "_Scope") -> Limits:
        """The server's limits, asked once."""
        if self._limits is None:
            self._limits = limits_of(self._call(SERVER_INFO, pb.GetServerInfoRequest(), course, scope))
        return self._limits

    def _call(self, method: Callable[[ServerStubs], Any], request: Any, course: CallAttempts, scope: "_Scope") -> Any:
        """The answer of whichever server gives it. Raises ServerError, UsageError."""
        while True:
            with course.server() as index:
                try:
                    call = method(self._links[index]).future(request, timeout=course.left_s, metadata=self._metadata)
                except ValueError:  # what gRPC says of a closed channel
                    raise UsageError("this client is closed; make a new one") from None
                try:
                    return scope.result(call)
                except grpc.RpcError as error:
                    if self._is_closed:
                        raise ServerError("the call was cancelled: its client was closed") from None
                    failure = failure_of(error)
            scope.pause(course.pause_after(failure, index))


class _Scope:
    """What ends together: the calls and pauses of one `score_many`, when it is left."""

    def __init__(self) -> None:
        self._is_over = threading.Event()
        self._calls: set[Any] = set()
        self._lock = threading.Lock()

    def result(self, call: Any) -> Any:
        """The result of a call, which is cancelled when the scope ends."""
        with self._lock:
            self._calls.add(call)
        if self._is_over.is_set():
            call.cancel()
        try:
            return call.result()
        except grpc.FutureCancelledError:
            raise ServerError("the call was cancelled: its stream was closed") from None
        finally:
            with self._lock:
                self._calls.discard(call)

    def pause(self, seconds: float) -> None:
        """Wait, unless the scope ends."""
        if self._is_over.wait(seconds):
            raise ServerError("the call was cancelled: its stream was closed")

    def end(self) -> None:
        """Cancel the calls in progress and end the pauses."""
        self._is_over.set()
        with self._lock:
            calls = list(self._calls)
        for call in calls:
            call.cancel()


def _in_order(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Generator[Result]:
    """The results of a function, in the order of the items; the caller's thread reads the items."""
    pending: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="score-many")
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if is_time_to_answer(len(pending), workers, pending[0].done()):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
