"""The number of calls to an endpoint at a time: additive increase, multiplicative decrease.

    overload (429, 5xx, time-out)    limit / 2, at least 1; calls that began before the last decrease count once with it
    success                          limit + 1 / limit, so about one more for each `limit` calls; at most the maximum
    Retry-After                      no call begins before that time

It starts at the maximum: an endpoint that takes all calls is used in full from the first on.
"""

import threading
import time
from dataclasses import dataclass
from typing import Literal

Outcome = Literal["success", "overload", "failure"]


@dataclass(frozen=True)
class Slot:
    """The permission for a call, and the number of decreases before it began."""

    num_decreases: int


class AdaptiveLimit:
    """The limit on the calls in flight; threads share it."""

    def __init__(self, maximum: int) -> None:
        self.limit = float(maximum)
        self._maximum = maximum
        self._num_in_flight = 0
        self._num_decreases = 0
        self._start_after = 0.0
        self._condition = threading.Condition()

    def acquire(self) -> Slot:
        """Wait until a call may begin."""
        with self._condition:
            while True:
                pause_s = self._start_after - time.monotonic()
                if pause_s <= 0 and self._num_in_flight < int(self.limit):
                    self._num_in_flight += 1
                    return Slot(self._num_decreases)
                self._condition.wait(pause_s if pause_s > 0 else None)

    def release(self, slot: Slot, outcome: Outcome, pause_s: float = 0.0) -> None:
        """End a call and adapt the limit; no call begins for `pause_s` seconds."""
        with self._condition:
            self._num_in_flight -= 1
            if pause_s > 0:
                self._start_after = max(self._start_after, time.monotonic() + pause_s)
            if outcome == "success":
                self.limit = min(self._maximum, self.limit + 1 / self.limit)
            elif outcome == "overload" and slot.num_decreases == self._num_decreases:
                self.limit = max(1.0, self.limit / 2)
                self._num_decreases += 1
            self._condition.notify_all()
