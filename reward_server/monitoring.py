"""Monitoring of a server: Prometheus metrics, and one JSON line in the log for each call. No text of a prompt appears.

The names of the metrics and the keys of the JSON lines are documented in docs/serving.md.
"""

import json
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

TOKEN_BUCKETS = (64, 256, 1024, 4096, 16384, 65536, 262144, 1048576)
SECONDS_BUCKETS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
MAX_LOGGED_CHARS = 128

call_log = logging.getLogger("winnow.calls")


class Metrics:
    """The metrics of one server, in their own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.batch_tokens = self._histogram(
            "winnow_batch_tokens", "Tokens of a batch, both models together.", TOKEN_BUCKETS
        )
        self.queue_s = self._histogram("winnow_queue_seconds", "How long a group waited.", SECONDS_BUCKETS)
        self.compute_s = self._histogram("winnow_compute_seconds", "How long a batch was computed.", SECONDS_BUCKETS)
        self.call_s = self._histogram(
            "winnow_call_seconds", "From a call's start to its end.", SECONDS_BUCKETS, "method"
        )
        self.tokens = self._counter("winnow_tokens_total", "Tokens computed or found in the cache, both models.")
        self.calls = self._counter("winnow_calls_total", "Calls that ended.", "method", "code")
        self.completions = self._counter("winnow_completions_total", "Completions in responses.", "status")
        self.refused = self._counter("winnow_refused_total", "Calls that were refused.", "reason")
        self.dropped = self._counter("winnow_dropped_total", "Groups dropped while they waited.", "reason")

    def count_batch(self, num_tokens: int, seconds: float) -> None:
        """Count a batch that was computed in `seconds`."""
        self.batch_tokens.observe(num_tokens)
        self.compute_s.observe(seconds)
        self.tokens.inc(num_tokens)

    def add_gauge(self, name: str, meaning: str, value: Callable[[], float]) -> None:
        """Add a gauge; `value` is called whenever the metrics are read."""
        Gauge(name, meaning, registry=self.registry).set_function(value)

    def _histogram(self, name: str, meaning: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(name, meaning, labels, buckets=buckets, registry=self.registry)

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(name, meaning, labels, registry=self.registry)


@dataclass
class Call:
    """One call, from its start to its line in the log; a stream is one call of many groups."""

    method: str
    client: str
    metrics: Metrics
    request_id: str = ""
    code: str = "OK"
    num_groups: int = 0
    num_completions: int = 0
    num_tokens: int = 0
    num_cached: int = 0
    queue_s: float = 0.0
    compute_s: float = 0.0
    started_at: float = field(default_factory=time.monotonic)

    def add(self, num_completions: int, num_tokens: int, num_cached: int, queue_s: float, compute_s: float) -> None:
        """Add a group that was scored to the record; times are in seconds."""
        self.num_groups += 1
        self.num_completions += num_completions
        self.num_tokens += num_tokens
        self.num_cached += num_cached
        self.queue_s += queue_s
        self.compute_s += compute_s

    def finish(self) -> None:
        """Count the call in the metrics, and write its line to the log."""
        total_s = time.monotonic() - self.started_at
        self.metrics.calls.labels(self.method, self.code).inc()
        self.metrics.call_s.labels(self.method).observe(total_s)
        if call_log.isEnabledFor(logging.INFO):
            call_log.info(json.dumps(self._line(total_s)))

    def _line(self, total_s: float) -> dict[str, str | float]:
        return {
            "time": round(time.time(), 3),
            "method": self.method,
            "client": self.client[:MAX_LOGGED_CHARS],
            "request_id": self.request_id[:MAX_LOGGED_CHARS],
            "code": self.code,
            "groups": self.num_groups,
            "completions": self.num_completions,
            "tokens": self.num_tokens,
            "cached": self.num_cached,
            "queue_s": round(self.queue_s, 4),
            "compute_s": round(self.compute_s, 4),
            "total_s": round(total_s, 4),
        }


def log_to_stderr() -> None:
    """Log to stderr: start-up messages as text for people, calls as JSON lines for programs."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    call_log.handlers = [handler]
    call_log.propagate = False
