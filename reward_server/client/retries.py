"""Retries of a call: which server gets it, which failures are retried, and after which pause. No call is made here.

    UNAVAILABLE, CANCELLED              retried: the server was not reached, or stopped before it responded
    RESOURCE_EXHAUSTED with push-back   retried after the push-back, until the deadline: the server's queue was full
    a push-back below 0                 never retried
    anything else                       never retried: deadline passed, request malformed, server broken

Exponential backoff with jitter, after a server's i-th failure to respond (U is the uniform distribution):

    pause = min(first_pause_s * 2**(i - 1), max_pause_s) * U(0.5, 1)

With the default policy, before jitter: 0.2 s, 0.4 s, 0.8 s, 1.6 s, then 2 s each time. A full server sets the pause
itself: pause = push-back * U(1, 1.2). A call fails for good when every server has failed to respond `max_attempts`
times. So a server that is away uses up no attempts of the others.

Least-connections balancing: a call goes to the server with the fewest calls in progress. A server that failed or pushed
back gets no calls during its pause; the call goes to another server at once. Scoring a group twice does no harm.
"""

import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from reward_server.client.proxies import proxy_setting
from reward_server.protocol import PUSHBACK_KEY
from winnow.errors import AuthError, DeadlineError, ServerBusyError, ServerError, UsageError, WinnowError
from winnow.proxies import proxy_remedy

# Three years. gRPC does not accept a deadline that is much longer, or infinite.
MAX_TIMEOUT_S = 1e8
# After so many doublings the pause is at its maximum; without a limit, 2.0**i would overflow.
MAX_DOUBLINGS = 30
# A stopping server cancels the calls in progress. Calls that this side cancels never get here.
AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


@dataclass(frozen=True)
class RetryPolicy:
    """Limits of the exponential backoff with jitter, for calls to servers that do not respond.

    max_attempts    times that each server may fail to respond to one call; None: any number until the deadline
    first_pause_s   pause after a server's first failure, in seconds; it doubles with each further failure
    max_pause_s     longest pause, in seconds
    """

    max_attempts: int | None = 5
    first_pause_s: float = 0.2
    max_pause_s: float = 2.0


# For health checks of a server that may still load its models: until the deadline.
POLL = RetryPolicy(max_attempts=None)


@dataclass(frozen=True)
class Failure:
    """A failed call: gRPC's status, and the server's push-back in seconds (None: none; below 0: do not retry)."""

    code: grpc.StatusCode
    details: str
    pushback_s: float | None = None

    @property
    def is_away(self) -> bool:
        """True if the server was not reached or stopped."""
        return self.code in AWAY

    @property
    def is_full(self) -> bool:
        """True if the server's queue was full. Without a push-back the status means something else."""
        return self.code == grpc.StatusCode.RESOURCE_EXHAUSTED and self.pushback_s is not None


def check_timeout(timeout_s: float) -> float:
    """Return the timeout, in seconds. Raises UsageError if it is not a positive number or is too long for gRPC."""
    if not (isinstance(timeout_s, int | float) and 0 < timeout_s <= MAX_TIMEOUT_S):
        raise UsageError(f"timeout_s {timeout_s!r} should be a number of seconds above 0, at most {MAX_TIMEOUT_S:g}")
    return timeout_s


def failure_of(error: Any) -> Failure:
    """Return the failure of a `grpc.RpcError`. A push-back that is not a number forbids a retry, as in gRPC itself."""
    pushback_s = None
    for key, value in error.trailing_metadata() or ():
        if key == PUSHBACK_KEY:
            pushback_s = _parse_pushback(value)
            break
    return Failure(error.code(), error.details() or "", pushback_s)


def _parse_pushback(milliseconds: str | bytes) -> float:
    try:
        return int(milliseconds) / 1000
    except ValueError:
        return -1.0


def pause_s(failure: Failure, num_failures: int, min_failures: int, policy: RetryPolicy) -> float | None:
    """Return the seconds until a server that failed may be called again; None if the call fails for good.

    The server has failed to respond to this call `num_failures` times, and every server at least `min_failures` times.
    """
    if not (failure.is_away or failure.is_full):
        return None
    if failure.pushback_s is not None and failure.pushback_s < 0:
        return None
    if failure.is_away and policy.max_attempts is not None and min_failures >= policy.max_attempts:
        return None
    if failure.pushback_s is not None:
        return failure.pushback_s * random.uniform(1.0, 1.2)
    backoff_s = policy.first_pause_s * 2.0 ** min(num_failures - 1, MAX_DOUBLINGS)
    return min(backoff_s, policy.max_pause_s) * random.uniform(0.5, 1.0)


def error_of(failure: Failure, address: str, timeout_s: float) -> WinnowError:
    """Return the caller's error for a failure that is not retried. It names the server, the fault and the remedy."""
    code = failure.code
    details = failure.details
    if code == grpc.StatusCode.INVALID_ARGUMENT:
        return UsageError(f"the reward server refuses the request as malformed: {details}")
    if failure.is_full:
        return ServerBusyError(
            f"the reward server at {address} is full and took no request within {timeout_s:g} s ({details}); raise "
            "timeout_s, have fewer groups in progress, or add servers",
            retry_s=max(failure.pushback_s or 0.0, 0.0),
        )
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineError(
            f"the reward server at {address} did not respond within {timeout_s:g} s; raise timeout_s, or send fewer "
            f"completions at a time{proxy_remedy(proxy_setting(address))}"
        )
    if code == grpc.StatusCode.UNAUTHENTICATED:
        return AuthError(
            f"the reward server at {address} does not know the caller ({details}); give its token= or --token-file"
        )
    if failure.is_away:
        return ServerError(
            f"no reward server answers at {address} ({details}); start one with `winnow serve --instruct DIR "
            "--base DIR --listen HOST:PORT`, or check the address, and whether both sides use TLS and take "
            f"each other's certificate{proxy_remedy(proxy_setting(address))}"
        )
    return ServerError(
        f"the reward server at {address} failed: {code.name}: {details}{proxy_remedy(proxy_setting(address))}"
    )


class LoadBalancer:
    """Least-connections balancing over the servers of one client. All calls of the client share it, in any thread."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self.addresses = addresses
        self._num_in_progress = [0] * len(addresses)
        self._paused_until = [0.0] * len(addresses)
        self._next_index = 0
        self._lock = threading.Lock()

    @contextmanager
    def pick(self, now: float) -> Iterator[int]:
        """Yield the index of the server to call; it has one more call in progress until the block ends."""
        with self._lock:
            index = self._least_busy(now)
            self._num_in_progress[index] += 1
        try:
            yield index
        finally:
            with self._lock:
                self._num_in_progress[index] -= 1

    def pause(self, index: int, until: float) -> float:
        """Give a server no calls before `until`. Return the earliest time at which any server may be called."""
        with self._lock:
            self._paused_until[index] = until
            return min(self._paused_until)

    def _least_busy(self, now: float) -> int:
        """Choose the server with the fewest calls, ties by round robin; if all pause, the first to become free."""
        num_servers = len(self.addresses)
        free = [index for index in range(num_servers) if self._paused_until[index] <= now]
        if not free:
            return min(range(num_servers), key=self._paused_until.__getitem__)

        def load(index: int) -> tuple[int, int]:
            return self._num_in_progress[index], (index - self._next_index) % num_servers

        chosen = min(free, key=load)
        self._next_index = chosen + 1
        return chosen


class CallAttempts:
    """The attempts of one call: its deadline, and after each failure the pause or the error."""

    def __init__(self, balancer: LoadBalancer, policy: RetryPolicy, timeout_s: float) -> None:
        self._balancer = balancer
        self._policy = policy
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._num_failures = [0] * len(balancer.addresses)

    @property
    def remaining_s(self) -> float:
        """Seconds to the deadline."""
        return max(self._deadline - time.monotonic(), 0.0)

    def pick_server(self) -> AbstractContextManager[int]:
        """Return a context manager that yields the index of the server to call now."""
        return self._balancer.pick(time.monotonic())

    def pause_after(self, failure: Failure, index: int) -> float:
        """Return the seconds to wait before the next attempt. Raises the caller's error if the call fails for good."""
        if failure.is_away:
            self._num_failures[index] += 1
        server_pause_s = pause_s(failure, self._num_failures[index], min(self._num_failures), self._policy)
        if server_pause_s is None:
            raise self._error(failure, index)
        now = time.monotonic()
        next_attempt = self._balancer.pause(index, now + server_pause_s)
        wait_s = max(next_attempt - now, 0.0)
        if now + wait_s > self._deadline:
            raise self._error(failure, index)
        return wait_s

    def _error(self, failure: Failure, index: int) -> WinnowError:
        return error_of(failure, self._balancer.addresses[index], self._timeout_s)
