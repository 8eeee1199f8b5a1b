"""The server of the serving benchmark: a `winnow serve` process with a small pair, its metrics and its memory."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.tiny_models import make_model
from sampler.managed_server import ManagedServer, running_server
from winnow.serve_config import QueueConfig, ServeConfig

SHAPE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "head_dim": 64}
TOKEN_BUDGET = 1024
QUEUE_TOKENS = 150_000
STOP_TIMEOUT_S = 30.0
# The metrics page is on this machine, whatever http_proxy says.
DIRECT = build_opener(ProxyHandler({}))


@dataclass(frozen=True)
class Sample:
    """The state of the server at a time: tokens of both models since its start, and memory."""

    time: float
    tokens: float
    rss_mib: float


class Server:
    """A running server with its metrics page."""

    def __init__(self, managed: ManagedServer, metrics_url: str) -> None:
        self.address = managed.address
        self._pid = managed.process.pid
        self._metrics_url = metrics_url

    def metric(self, name: str) -> float:
        """Read a metric from the metrics page. Raises KeyError for an unknown name."""
        with DIRECT.open(self._metrics_url, timeout=30) as response:
            page = response.read().decode()
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                if sample.name == name:
                    return float(sample.value)
        raise KeyError(name)

    @property
    def rss_mib(self) -> float:
        """The resident memory of the server's processes, in MiB."""
        total = resident_mib(self._pid)
        for children in Path(f"/proc/{self._pid}/task").glob("*/children"):
            total += sum(resident_mib(int(pid)) for pid in children.read_text().split())
        return total

    def sample(self) -> Sample:
        """Measure the state of the server now."""
        return Sample(time.monotonic(), self.metric("winnow_tokens_total"), self.rss_mib)


@contextmanager
def server(folder: Path) -> Iterator[Server]:
    """Start a server for the block. Raises AssertionError unless it ends with exit code 0 after the block."""
    config = ServeConfig(
        instruct=str(make_model("llama", folder / "instruct", 0, **SHAPE)),
        base=str(make_model("llama", folder / "base", 1, **SHAPE)),
        chat_template="lab",
        metrics_listen="127.0.0.1:0",
        token_budget=TOKEN_BUDGET,
        queue=QueueConfig(max_tokens=QUEUE_TOKENS),
        cache_bytes=0,
    )
    with running_server(config, folder, {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}) as managed:
        log = managed.log_path.read_text()
        metrics_url = next(word for word in log.split() if word.endswith("/metrics"))
        yield Server(managed, metrics_url)
        managed.process.terminate()
        assert managed.process.wait(STOP_TIMEOUT_S) == 0, managed.log_path.read_text()[-2000:]


def resident_mib(pid: int) -> float:
    """Return the resident memory of a process, in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def longest_s(samples: Sequence[Sample], num_tokens: float) -> float:
    """Return the longest time in which `num_tokens` tokens were computed, from the time of any sample.

    If the samples cover fewer tokens, the mean rate gives the time.
    """
    times = [sample.time for sample in samples]
    counts = [sample.tokens for sample in samples]
    spans: list[float] = []
    for start in samples:
        if start.tokens + num_tokens <= counts[-1]:
            end = float(np.interp(start.tokens + num_tokens, counts, times))
            spans.append(end - start.time)
    s_per_token = (times[-1] - times[0]) / max(counts[-1] - counts[0], 1.0)
    return max(spans, default=num_tokens * s_per_token)
