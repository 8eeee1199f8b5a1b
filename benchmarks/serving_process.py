"""The server of the serving benchmark: a `winnow serve` process on a small pair, its metrics and its memory."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from tests.tiny_models import make_model

ROOT = Path(__file__).parent.parent
SHAPE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "head_dim": 64}
TOKEN_BUDGET, QUEUE_TOKENS = 1024, 150_000


@dataclass(frozen=True)
class Sample:
    """The server at a time: tokens computed since its start, and memory."""

    time: float
    tokens: float
    rss_mib: float


class Server:
    """A `winnow serve` process."""

    def __init__(self, process: "subprocess.Popen[str]", address: str, metrics: str) -> None:
        self.process = process
        self.address = address
        self._metrics = metrics

    def metric(self, name: str) -> float:
        """A number of its metrics page."""
        with urlopen(self._metrics, timeout=30) as response:
            families = list(text_string_to_metric_families(response.read().decode()))
        return next(sample.value for family in families for sample in family.samples if sample.name == name)

    @property
    def rss_mib(self) -> float:
        """Resident memory of its processes."""
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        pids = [self.process.pid, *(int(pid) for task in tasks for pid in task.read_text().split())]
        return sum(resident_mib(pid) for pid in pids)

    def sample(self) -> Sample:
        """How it is now."""
        return Sample(time.monotonic(), self.metric("winnow_tokens_total"), self.rss_mib)


@contextmanager
def server(folder: Path) -> Iterator[Server]:
    """A server for the time of a block; it must end with exit code 0."""
    instruct, base = (make_model("llama", folder / name, seed, **SHAPE) for seed, name in enumerate(["one", "two"]))
    config = {
        "instruct": str(instruct),
        "base": str(base),
        "chat_template": "lab",
        "listen": "127.0.0.1:0",
        "metrics_listen": "127.0.0.1:0",
        "token_budget": TOKEN_BUDGET,
        "queue": {"max_tokens": QUEUE_TOKENS},
        "cache_bytes": 0,
    }
    (folder / "serve.json").write_text(json.dumps(config))
    log = folder / "server.log"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "winnow.cli", "serve", str(folder / "serve.json")]
    with log.open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT, env=environment)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().removeprefix("listening on ").strip()
        metrics = next(word for word in log.read_text().split() if word.endswith("/metrics"))
        yield Server(process, address, metrics)
        process.terminate()
        assert process.wait(30) == 0, log.read_text()[-2000:]
    finally:
        process.kill()
        process.wait()


def resident_mib(pid: int) -> float:
    """Resident memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def longest_s(samples: Sequence[Sample], tokens: float) -> float:
    """The longest that so many tokens took, whenever one began to wait; by the mean rate if there were fewer."""
    times, counts = [sample.time for sample in samples], [sample.tokens for sample in samples]
    spans = [
        float(np.interp(start.tokens + tokens, counts, times)) - start.time
        for start in samples
        if start.tokens + tokens <= counts[-1]
    ]
    return max(spans, default=tokens * (times[-1] - times[0]) / max(counts[-1] - counts[0], 1.0))
