"""How a client goes about one call: which server to ask, what to try again, how long to pause. No transport here.

    UNAVAILABLE, CANCELLED              again: the server was not reached, or went away before it answered
    RESOURCE_EXHAUSTED with push-back   again after the push-back, until the deadline: the queue was full
    a push-back below 0                 never again
    anything else                       never again: a deadline is over, a request is malformed, a server is broken

    pause after a server's i-th failure to answer = first_pause_s * 2**(i - 1), at most max_pause_s, times U(0.5, 1)
    pause after a push-back                       = push-back * U(1, 1.2)

A call is given up when each server has failed to answer so many times: one that is away costs the others nothing.

Scoring twice does no harm. Of several servers each call goes to the one with the fewest calls in progress; one that
failed or pushed back is left alone for its pause, while another one is asked at once.
"""

import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from winnow.errors import AuthError, DeadlineError, ServerBusyError, ServerError, UsageError, WinnowError

PUSHBACK_KEY = "grpc-retry-pushback-ms"
# Three years. gRPC takes no much longer deadline, nor an endless one.
MAX_TIMEOUT_S = 1e8
# A server that stops cancels the calls in progress; those that this side cancels never come back here.
AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


@dataclass(frozen=True)
class RetryPolicy:
    """How patient a client is: times that each server may fail to answer (None: until the deadline), and pauses."""

    max_attempts: int | None = 5
    first_pause_s: float = 0.2
    max_pause_s: float = 2.0


@dataclass(frozen=True)
class Failure:
    """What a failed call says: its status, and the server's push-back in seconds (below 0: do not come back)."""

    code: grpc.StatusCode
    details: str
    pushback_s: float | None = None


def check_timeout(timeout_s: float) -> float:
    """The timeout, in seconds. Raises UsageError for what is none."""
    if not (isinstance(timeout_s, int | float) and 0 < timeout_s <= MAX_TIMEOUT_S):
        raise UsageError(f"timeout_s {timeout_s!r} should be a number of seconds above 0, at most {MAX_TIMEOUT_S:g}")
    return timeout_s


def failure_of(error: Any) -> Failure:
    """What an error of gRPC says. A push-back that is no number means, as in gRPC itself, not to come back."""
    pushback = next((value for key, value in error.trailing_metadata() or () if key == PUSHBACK_KEY), None)
    return Failure(error.code(), error.details() or "", None if pushback is None else _seconds(pushback))


def pause_s(failure: Failure, attempt: int, rounds: int, policy: RetryPolicy) -> float | None:
    """Seconds until the server may be asked again, after its `attempt`-th failure to answer; None: give the call up.

    Every server has failed to answer `rounds` times.
    """
    is_told = failure.pushback_s is not None
    is_away = failure.code in AWAY
    is_full = failure.code == grpc.StatusCode.RESOURCE_EXHAUSTED and is_told
    if not (is_away or is_full) or (failure.pushback_s is not None and failure.pushback_s < 0):
        return None
    if is_away and policy.max_attempts is not None and rounds >= policy.max_attempts:
        return None
    if failure.pushback_s is not None:
        return failure.pushback_s * random.uniform(1.0, 1.2)
    doubled = policy.first_pause_s * 2.0 ** min(attempt - 1, 30)
    return min(doubled, policy.max_pause_s) * random.uniform(0.5, 1.0)


def explained(failure: Failure, address: str, timeout_s: float) -> WinnowError:
    """The error for the user: what was asked, what went wrong, the way out."""
    code, details = failure.code, failure.details
    if code == grpc.StatusCode.INVALID_ARGUMENT:
        return UsageError(f"the reward server calls the request malformed: {details}")
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED and failure.pushback_s is not None:
        return ServerBusyError(
            f"the reward server at {address} is full and took no request within {timeout_s:g} s ({details}); raise "
            "timeout_s, ask for less at a time, or add servers",
            retry_s=max(failure.pushback_s, 0.0),
        )
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineError(
            f"the reward server at {address} gave no answer within {timeout_s:g} s; raise timeout_s, or "
            "send fewer completions at a time"
        )
    if code == grpc.StatusCode.UNAUTHENTICATED:
        return AuthError(
            f"the reward server at {address} does not know the caller ({details}); give its token= or --token-file"
        )
    return ServerError(_failed(code, details, address))


def _failed(code: grpc.StatusCode, details: str, address: str) -> str:
    if code in AWAY:
        return (
            f"no reward server answers at {address} ({details}); start one with `winnow serve --instruct DIR "
            "--base DIR --listen HOST:PORT`, or check the address, and whether both sides use TLS and take "
            "each other's certificate"
        )
    return f"the reward server at {address} failed: {code.name}: {details}"


class LoadBalancer:
    """Which of several servers is asked next. Shared by the calls of one client, also between threads."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self.addresses = addresses
        self._in_progress = [0] * len(addresses)
        self._not_before = [0.0] * len(addresses)
        self._turn = 0
        self._lock = threading.Lock()

    @contextmanager
    def one(self, now: float) -> Iterator[int]:
        """The index of the server to ask: of those that are not left alone, the one with the fewest calls."""
        with self._lock:
            index = self._next(now)
            self._in_progress[index] += 1
        try:
            yield index
        finally:
            with self._lock:
                self._in_progress[index] -= 1

    def leave_alone(self, index: int, until: float) -> float:
        """Ask a server no more before `until`; returns the time from which some server may be asked."""
        with self._lock:
            self._not_before[index] = until
            return min(self._not_before)

    def _next(self, now: float) -> int:
        count = len(self.addresses)
        free = [index for index in range(count) if self._not_before[index] <= now]
        if not free:
            return min(range(count), key=self._not_before.__getitem__)
        chosen = min(free, key=lambda index: (self._in_progress[index], (index - self._turn) % count))
        self._turn = chosen + 1
        return chosen


class CallAttempts:
    """The course of one call: its deadline, and after each failure the pause or the error."""

    def __init__(self, servers: LoadBalancer, policy: RetryPolicy, timeout_s: float) -> None:
        self.servers = servers
        self.policy = policy
        self.timeout_s = timeout_s
        self.deadline = time.monotonic() + timeout_s
        self._num_away = [0] * len(servers.addresses)

    @property
    def left_s(self) -> float:
        """Seconds to the deadline."""
        return max(self.deadline - time.monotonic(), 0.0)

    def server(self) -> Any:
        """A context of the index of the server to ask now."""
        return self.servers.one(time.monotonic())

    def pause_after(self, failure: Failure, index: int) -> float:
        """Seconds to wait before another attempt. Raises what `explained` says where there is none."""
        self._num_away[index] += failure.code in AWAY
        own = pause_s(failure, self._num_away[index], min(self._num_away), self.policy)
        if own is None:
            raise explained(failure, self.servers.addresses[index], self.timeout_s)
        now = time.monotonic()
        pause = max(self.servers.leave_alone(index, now + own) - now, 0.0)
        if now + pause > self.deadline:
            raise explained(failure, self.servers.addresses[index], self.timeout_s)
        return pause


def _seconds(pushback: str | bytes) -> float:
    try:
        return int(pushback) / 1000
    except ValueError:
        return -1.0
