"""The blocking client: `RewardClient`. Import it from reward_server.client, whose docstring shows how to use it."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from types import TracebackType
from typing import Any, Self, TypeVar

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

Item = TypeVar("Item")
Result = TypeVar("Result")


class RewardClient(BaseClient):
    """A connection to one or several reward servers; a context manager. Threads may share it.

    Addresses are "host:50051", several with commas ("gpu1:50051,gpu2:50051"; each call goes to the least busy server),
    or a name with several addresses ("dns:///rewards.internal:50051"). Calls are retried with exponential backoff and
    jitter (`RetryPolicy`) if a server cannot be reached, and at the server's request if it is full. The methods raise:

        UsageError         the request or a setting is malformed, or the client is closed
        ServerError        no server can be reached, or it failed. Its kinds:
        ServerBusyError    the server's queue stayed full until the deadline
        DeadlineError      the server did not respond before the deadline
        AuthError          the server does not accept the caller's credentials
    """

    def _open(self) -> None:
        self._stubs = open_stubs(grpc, self._settings, self._credentials)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; calls in progress end with a ServerError."""
        self._is_closed = True
        for stubs in self._stubs:
            stubs.channel.close()

    def score(
        self,
        prompt: Prompt,
        completions: Iterable[CompletionInput],
        options: RewardOptions | None = None,
        **keywords: Any,
    ) -> ScoredGroup:
        """Return the rewards of one prompt's completions, in order. `keywords` change fields of `options`.

        A group beyond the server's limits is sent in parts. Raises ServerError if no server can be reached or it fails,
        UsageError if the request is malformed.
        """
        group = Group(prompt, listed(completions))
        return self._score(group, merge_options(options, keywords), _CancelScope())

    def score_many(
        self,
        groups: Iterable[Group],
        options: RewardOptions | None = None,
        *,
        concurrency: int | None = None,
        on_progress: Progress | None = None,
        **keywords: Any,
    ) -> Iterator[ScoredGroup]:
        """Yield the rewards of each group, in the order of `groups`, which may be endless.

        `concurrency` groups are in progress at once (default: 8 for each server), and at most four times as many are
        read and not yet yielded. `on_progress` gets the number of groups that are done. `keywords` change fields of
        `options`. Raises as `score` does, where the rewards of the group would have been yielded.
        """
        num_concurrent = self._num_concurrent(concurrency)
        chosen = merge_options(options, keywords)
        scope = _CancelScope()
        results = _map_in_order(lambda group: self._score(group, chosen, scope), groups, num_concurrent)
        try:
            with closing(results):
                for num_done, rewards in enumerate(results, start=1):
                    if on_progress is not None:
                        on_progress(num_done)
                    yield rewards
        finally:
            scope.cancel()

    def server_info(self) -> ServerInfo:
        """Return the models that a server has loaded, and its limits. Raises ServerError as `score` does."""
        return self._get_server_info(self._new_attempts(), _CancelScope())

    def wait_until_ready(self, timeout_s: float) -> None:
        """Return once a server serves. Raises ServerError if none does within `timeout_s` seconds."""
        attempts = CallAttempts(self._balancer, POLL, timeout_s)
        scope = _CancelScope()
        while True:
            response = self._call(lambda stubs: stubs.check_health, HEALTH_REQUEST, attempts, scope)
            if self._is_serving(response, attempts):
                return
            scope.pause(POLL.first_pause_s)

    def _score(self, group: Group, options: RewardOptions, scope: "_CancelScope") -> ScoredGroup:
        attempts = self._new_attempts()
        if not has_completions(group):
            return ScoredGroup()
        if self._limits is None:
            self._limits = self._get_server_info(attempts, scope)
        requests = requests_of(group, options, self._limits)
        responses = []
        for request in requests.requests:
            responses.append(self._call(lambda stubs: stubs.score, request, attempts, scope))
        return scored_group(requests, responses, options)

    def _get_server_info(self, attempts: CallAttempts, scope: "_CancelScope") -> ServerInfo:
        request = pb.GetServerInfoRequest()
        return parse_server_info(self._call(lambda stubs: stubs.get_server_info, request, attempts, scope))

    def _call(
        self, method_of: Callable[[ServerStubs], Any], request: Any, attempts: CallAttempts, scope: "_CancelScope"
    ) -> Any:
        """Call a method of one server after another until there is a response. Raises ServerError, UsageError."""
        while True:
            with attempts.pick_server() as index:
                method = method_of(self._stubs[index])
                try:
                    call = method.future(request, timeout=attempts.remaining_s, metadata=self._settings.metadata)
                except ValueError:  # gRPC's error for a closed channel
                    raise UsageError("this client is closed; make a new one") from None
                try:
                    return scope.result_of(call)
                except grpc.RpcError as error:
                    if self._is_closed:
                        raise ServerError("the call was cancelled: its client was closed") from None
                    failure = failure_of(error)
            scope.pause(attempts.pause_after(failure, index))


class _CancelScope:
    """The calls and pauses of one `score_many`, which are cancelled together when its caller stops early."""

    def __init__(self) -> None:
        self._is_cancelled = threading.Event()
        self._calls: set[Any] = set()
        self._lock = threading.Lock()

    def result_of(self, call: Any) -> Any:
        """Wait for the response of a call. Raises ServerError if the scope is cancelled."""
        with self._lock:
            self._calls.add(call)
        if self._is_cancelled.is_set():
            call.cancel()
        try:
            return call.result()
        except grpc.FutureCancelledError:
            raise ServerError("the call was cancelled: its stream was closed") from None
        finally:
            with self._lock:
                self._calls.discard(call)

    def pause(self, seconds: float) -> None:
        """Wait. Raises ServerError if the scope is cancelled."""
        if self._is_cancelled.wait(seconds):
            raise ServerError("the call was cancelled: its stream was closed")

    def cancel(self) -> None:
        """Cancel the calls in progress and end the pauses."""
        self._is_cancelled.set()
        with self._lock:
            calls = list(self._calls)
        for call in calls:
            call.cancel()


def _map_in_order(function: Callable[[Item], Result], items: Iterable[Item], num_threads: int) -> Generator[Result]:
    """Yield the result of a function for each item, in order. The function runs in threads.

    The items are read in the caller's thread. Raises the errors of `items`, and those of `function` where its result
    would have been yielded.
    """
    pending: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="score-many")
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if is_result_due(len(pending), num_threads, pending[0].done()):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
