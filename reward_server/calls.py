"""The client's calls: deadlines, retries of an unreachable server, streams that survive a lost connection.

    pause before retry i = retry_s * 2**(i - 1) * U(0.5, 1), at most MAX_PAUSE_S; never beyond the deadline

Only UNAVAILABLE is tried again: the server was not reached, or went away before it answered. Scoring twice does no
harm.
"""

import random
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from itertools import count
from queue import SimpleQueue
from threading import Timer
from typing import Any

import grpc

from winnow.errors import ServerError, UsageError, WinnowError

MAX_PAUSE_S = 2.0


class Caller:
    """Makes the calls of one server; `max_attempts` None tries until `timeout_s` seconds are over."""

    def __init__(self, address: str, timeout_s: float, *, max_attempts: int | None = 5, retry_s: float = 0.2) -> None:
        self.address = address
        self.timeout_s = timeout_s
        self.max_attempts = max_attempts
        self.retry_s = retry_s

    def call(self, method: Callable[..., Any], request: Any) -> Any:
        """The answer of a unary call. Raises ServerError, and UsageError for what the server calls malformed."""
        deadline = time.monotonic() + self.timeout_s
        for attempt in count(1):
            try:
                return method(request, timeout=max(deadline - time.monotonic(), 0.0))
            except grpc.RpcError as error:
                self._pause_or_raise(error, attempt, deadline)
        raise AssertionError("count does not end")

    def stream(self, method: Callable[..., Any], requests: Iterator[Any], concurrency: int) -> Iterator[Any]:
        """One response for each request, in order, with at most `concurrency` requests unanswered. Raises as `call`.

        After a lost connection the unanswered ones are sent again.
        """
        pending: deque[Any] = deque()
        failures, deadline = 0, time.monotonic() + self.timeout_s
        while True:
            try:
                with closing(_responses(method, requests, pending, concurrency, self.timeout_s)) as responses:
                    for response in responses:
                        yield response
                        failures, deadline = 0, time.monotonic() + self.timeout_s
                return
            except grpc.RpcError as error:
                failures += 1
                self._pause_or_raise(error, failures, deadline)

    def _pause_or_raise(self, error: Any, attempt: int, deadline: float) -> None:
        pause = min(self.retry_s * 2 ** (attempt - 1), MAX_PAUSE_S) * random.uniform(0.5, 1.0)
        is_last = self.max_attempts is not None and attempt >= self.max_attempts
        if error.code() != grpc.StatusCode.UNAVAILABLE or is_last or time.monotonic() + pause > deadline:
            raise self._explained(error) from error
        time.sleep(pause)

    def _explained(self, error: Any) -> WinnowError:
        code, details = error.code(), error.details()
        if code == grpc.StatusCode.INVALID_ARGUMENT:
            return UsageError(f"the reward server calls the request malformed: {details}")
        if code == grpc.StatusCode.UNAVAILABLE:
            return ServerError(
                f"no reward server answers at {self.address} ({details}); start one with `winnow serve --instruct DIR "
                "--base DIR --listen HOST:PORT`, or check the address"
            )
        if code in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED):
            return ServerError(
                f"the reward server at {self.address} gave no answer within {self.timeout_s:g} s; raise timeout_s, or "
                "send fewer completions at a time"
            )
        return ServerError(f"the reward server at {self.address} failed: {code.name}: {details}")


def _responses(
    method: Callable[..., Any], requests: Iterator[Any], pending: deque[Any], concurrency: int, timeout_s: float
) -> Generator[Any, None, None]:
    """Responses over one connection; `pending` holds the unanswered requests, and starts with those of the last one.

    `requests` is read in the caller's thread, where its errors belong, and not in gRPC's.
    """
    outgoing: SimpleQueue[Any] = SimpleQueue()
    for request in pending:
        outgoing.put(request)
    call = method(iter(outgoing.get, None))
    try:
        while _refill(pending, requests, concurrency, outgoing):
            with _cancelled_after(call, timeout_s):
                response = next(call, None)
            if response is None or response.request_id != pending[0].request_id:
                raise ServerError("the reward server broke the order of its stream; run one of this version")
            pending.popleft()
            yield response
    finally:
        outgoing.put(None)
        call.cancel()


def _refill(pending: deque[Any], requests: Iterator[Any], concurrency: int, outgoing: "SimpleQueue[Any]") -> bool:
    """Send requests until `concurrency` are unanswered; False when none is."""
    while len(pending) < concurrency and (request := next(requests, None)) is not None:
        pending.append(request)
        outgoing.put(request)
    return bool(pending)


@contextmanager
def _cancelled_after(call: Any, timeout_s: float) -> Iterator[None]:
    """Cancel the call if the block takes longer: a stream's own deadline would bound all of it."""
    timer = Timer(timeout_s, call.cancel)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
