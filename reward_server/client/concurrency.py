"""What `score_many` and `wait_until_ready` of both clients share: how much is in progress, how readiness is polled."""

from collections.abc import Callable

from reward_server.client.retries import RetryPolicy
from winnow.errors import UsageError

SERVICE_NAME = "winnow.v1.RewardService"
# Groups in progress, for each server: enough that it can batch them, and never waits for the next.
CONCURRENCY = 8
# Groups that are read and not yet given out, as a multiple of those in progress: one slow group stops no server.
READ_AHEAD = 4
POLL = RetryPolicy(max_attempts=None)

Progress = Callable[[int], None]


def check_concurrency(concurrency: int | None, num_servers: int) -> int:
    """How many groups are in progress at once. Raises UsageError."""
    if concurrency is None:
        return CONCURRENCY * num_servers
    if concurrency < 1:
        raise UsageError(f"concurrency {concurrency} should be at least 1")
    return concurrency


def is_time_to_answer(num_pending: int, concurrency: int, is_first_done: bool) -> bool:
    """Whether the first pending group is given out before the next one is read: enough work is under way."""
    return num_pending >= concurrency * READ_AHEAD or (is_first_done and num_pending >= concurrency)
