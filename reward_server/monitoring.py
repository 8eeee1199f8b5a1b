"""What a server tells of itself: Prometheus metrics, and one JSON line for each call. Neither holds a prompt's text."""

import json
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

TOKENS = (64, 256, 1024, 4096, 16384, 65536, 262144, 1048576)
SECONDS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
MAX_LOGGED_CHARS = 128

calls = logging.getLogger("winnow.calls")


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.batch_tokens = self._histogram("winnow_batch_tokens", "Tokens of a batch, both models together.", TOKENS)
        self.queue_s = self._histogram("winnow_queue_seconds", "How long a group waited.", SECONDS)
        self.compute_s = self._histogram("winnow_compute_seconds", "How long a batch was computed.", SECONDS)
        self.call_s = self._histogram("winnow_call_seconds", "From a call's start to its end.", SECONDS, "method")
        self.tokens = self._counter("winnow_tokens_total", "Tokens computed or found in the cache, both models.")
        self.calls = self._counter("winnow_calls_total", "Calls that ended.", "method", "code")
        self.completions = self._counter("winnow_completions_total", "Completions answered.", "status")
        self.refused = self._counter("winnow_refused_total", "Groups refused when they came.", "reason")
        self.dropped = self._counter("winnow_dropped_total", "Groups dropped while they waited.", "reason")

    def computed(self, tokens: int, seconds: float) -> None:
        """A batch was computed."""
        self.batch_tokens.observe(tokens)
        self.compute_s.observe(seconds)
        self.tokens.inc(tokens)

    def show(self, name: str, meaning: str, value: Callable[[], float]) -> None:
        """A number that is asked for whenever the metrics are read."""
        Gauge(name, meaning, registry=self.registry).set_function(value)

    def _histogram(self, name: str, meaning: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(name, meaning, labels, buckets=buckets, registry=self.registry)

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(name, meaning, labels, registry=self.registry)


@dataclass
class Call:
    """One call, from its start to its line in the log."""

    method: str
    client: str
    metrics: Metrics
    request_id: str = ""
    code: str = "OK"
    groups: int = 0
    completions: int = 0
    tokens: int = 0
    cached: int = 0
    queue_s: float = 0.0
    compute_s: float = 0.0
    started: float = field(default_factory=time.monotonic)

    def add(self, num_completions: int, num_tokens: int, num_cached: int, queue_s: float, compute_s: float) -> None:
        """A group was answered."""
        self.groups += 1
        self.completions += num_completions
        self.tokens += num_tokens
        self.cached += num_cached
        self.queue_s += queue_s
        self.compute_s += compute_s

    def ended(self) -> None:
        """Count the call and write its line."""
        total_s = time.monotonic() - self.started
        self.metrics.calls.labels(self.method, self.code).inc()
        self.metrics.call_s.labels(self.method).observe(total_s)
        if calls.isEnabledFor(logging.INFO):
            calls.info(json.dumps(self._line(total_s)))

    def _line(self, total_s: float) -> dict[str, Any]:
        return {
            "time": round(time.time(), 3),
            "method": self.method,
            "client": self.client[:MAX_LOGGED_CHARS],
            "request_id": self.request_id[:MAX_LOGGED_CHARS],
            "code": self.code,
            "groups": self.groups,
            "completions": self.completions,
            "tokens": self.tokens,
            "cached": self.cached,
            "queue_s": round(self.queue_s, 4),
            "compute_s": round(self.compute_s, 4),
            "total_s": round(total_s, 4),
        }


def log_to_stderr() -> None:
    """Start-up lines for people, calls as JSON lines for programs; both to stderr."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    calls.handlers = [handler]
    calls.propagate = False
