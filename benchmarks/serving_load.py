"""The load of the serving benchmark: closed loops, one stream, and a flood that does not wait for responses.

Each caller of a closed loop has a separate connection. All groups differ, so that no result comes from a cache.
"""

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np

from benchmarks.serving_process import Sample, Server
from reward_server.pb import reward_pb2 as pb
from reward_server.pb.reward_pb2_grpc import RewardServiceStub
from reward_server.protocol import PUSHBACK_KEY

NUM_WORDS = 24
NUM_CONNECTIONS = 64
TICK_S = 0.02
CALL_TIMEOUT_S = 300
# Most requests that a stream sends ahead of their responses. Without a limit, megabytes of requests would wait in the
# connection at the end of the measurement.
MAX_STREAM_AHEAD = 32
WORDS = ("waves", "salt", "wind", "river", "fox", "bank", "colour", "rainbow", "quick", "lazy", "five", "six")
SEPARATE_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]


@dataclass
class Tally:
    """The outcomes of calls: latencies of the answered calls in seconds, refusals, and failures by status."""

    latencies: list[float] = field(default_factory=list)
    num_refused: int = 0
    failures: Counter[str] = field(default_factory=Counter)

    def percentile(self, percent: float) -> float:
        """Return a percentile of the latency, in seconds."""
        if not self.latencies:
            return float("nan")
        return float(np.percentile(self.latencies, percent))


@dataclass(frozen=True)
class Capacity:
    """The result of one closed loop."""

    clients: int
    answered: int
    groups_per_s: float
    tokens_per_s: float
    p50_s: float
    p99_s: float
    refused: int
    failures: dict[str, int]


@dataclass(frozen=True)
class StreamResult:
    """The result of one stream."""

    groups_per_s: float
    tokens_per_s: float


@dataclass(frozen=True)
class Flood:
    """The result of calls at a steady rate; `num_answered` counts the responses before the last call was sent."""

    tally: Tally
    seconds: float
    num_offered: int
    num_answered: int

    @property
    def groups_per_s(self) -> float:
        """Answered groups per second."""
        return self.num_answered / self.seconds


class RequestSource:
    """A source of requests that all differ."""

    def __init__(self, num_completions: int) -> None:
        self.num_completions = num_completions
        self._seeds = itertools.count()

    def draw(self) -> pb.ScoreRequest:
        """Make the next request."""
        rng = random.Random(next(self._seeds))
        question = " ".join(rng.choices(WORDS, k=NUM_WORDS)) + f" {rng.random():.9f}?"
        texts = [" ".join(rng.choices(WORDS, k=NUM_WORDS)) for _ in range(self.num_completions)]
        return pb.ScoreRequest(
            messages=pb.Messages(messages=[pb.Message(role="user", content=question)]),
            completions=[pb.Completion(text=pb.CompletionText(text=text, is_finished=True)) for text in texts],
        )


async def call(stub: Any, request: pb.ScoreRequest, tally: Tally, client: str) -> float:
    """Make one call and count its outcome; return the seconds to wait before the next call."""
    started = time.monotonic()
    try:
        await stub.Score(request, timeout=CALL_TIMEOUT_S, metadata=[("winnow-client", client)])
    except grpc.aio.AioRpcError as error:
        pushback = dict(error.trailing_metadata() or ()).get(PUSHBACK_KEY)
        if error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED and pushback is not None:
            tally.num_refused += 1
            return int(pushback) / 1000
        tally.failures[error.code().name] += 1
        return 1.0
    tally.latencies.append(time.monotonic() - started)
    return 0.0


def open_channel(address: str) -> Any:
    """Open a connection that no other caller shares."""
    return grpc.aio.insecure_channel(address, options=SEPARATE_CONNECTION)


async def closed_loop(target: Server, source: RequestSource, num_clients: int, seconds: float) -> Capacity:
    """Let each caller send a group, wait for the response, and repeat."""
    tally = Tally()
    before = target.sample()

    async def caller(client: str) -> None:
        async with open_channel(target.address) as channel:
            stub = RewardServiceStub(channel)  # type: ignore[no-untyped-call]
            while time.monotonic() < before.time + seconds:
                await asyncio.sleep(await call(stub, source.draw(), tally, client))

    await asyncio.gather(*(caller(str(index)) for index in range(num_clients)))
    after = target.sample()
    return Capacity(
        clients=num_clients,
        answered=len(tally.latencies),
        groups_per_s=len(tally.latencies) / (after.time - before.time),
        tokens_per_s=tokens_per_s(before, after),
        p50_s=tally.percentile(50),
        p99_s=tally.percentile(99),
        refused=tally.num_refused,
        failures=dict(tally.failures),
    )


async def streamed(target: Server, source: RequestSource, seconds: float) -> StreamResult:
    """Send group after group through one stream, at most MAX_STREAM_AHEAD ahead of the responses."""
    before = target.sample()
    num_responses = 0
    capacity = asyncio.Semaphore(MAX_STREAM_AHEAD)

    async def requests() -> AsyncIterator[pb.ScoreRequest]:
        while time.monotonic() < before.time + seconds:
            await capacity.acquire()
            yield source.draw()

    async with open_channel(target.address) as channel:
        stub: Any = RewardServiceStub(channel)  # type: ignore[no-untyped-call]
        async for _ in stub.ScoreStream(requests()):
            num_responses += 1
            capacity.release()
    after = target.sample()
    return StreamResult(num_responses / (after.time - before.time), tokens_per_s(before, after))


async def flood(
    target: Server, source: RequestSource, calls_per_s: float, seconds: float, clients: Iterator[str]
) -> Flood:
    """Send calls at a steady rate, each from the next client, over NUM_CONNECTIONS connections in rotation."""
    tally = Tally()
    num_offered = 0
    channels = [open_channel(target.address) for _ in range(NUM_CONNECTIONS)]
    stubs = itertools.cycle([RewardServiceStub(channel) for channel in channels])  # type: ignore[no-untyped-call]
    calls: set[asyncio.Task[float]] = set()
    started = time.monotonic()
    elapsed = 0.0
    while elapsed < seconds:
        for _ in range(int(elapsed * calls_per_s) - num_offered):
            num_offered += 1
            task = asyncio.ensure_future(call(next(stubs), source.draw(), tally, next(clients)))
            calls.add(task)
            task.add_done_callback(calls.discard)
        await asyncio.sleep(TICK_S)
        elapsed = time.monotonic() - started
    num_answered = len(tally.latencies)
    await asyncio.gather(*calls)
    for channel in channels:
        await channel.close()
    return Flood(tally, elapsed, num_offered, num_answered)


def tokens_per_s(before: Sample, after: Sample) -> float:
    """Return the server's mean rate between two samples."""
    return (after.tokens - before.tokens) / (after.time - before.time)
