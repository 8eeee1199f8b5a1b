"""Callers of a reward server: a closed loop, one stream, and a flood that does not wait for answers.

Each closed-loop caller has a connection of its own; no two groups are equal, so that no result is known already.
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

from benchmarks.serving_process import Server
from reward_server.pb import reward_pb2 as pb
from reward_server.pb.reward_pb2_grpc import RewardServiceStub
from reward_server.serving.service import PUSHBACK_KEY

NUM_WORDS = 24
NUM_CONNECTIONS = 64
TICK_S = 0.02
# Without a limit, megabytes of requests wait in the connection when time is up.
STREAM_AHEAD = 32
WORDS = ("waves", "salt", "wind", "river", "fox", "bank", "colour", "rainbow", "quick", "lazy", "five", "six")
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]


@dataclass
class Tally:
    """What came of the calls: latencies of the answered ones in seconds, and the others by kind."""

    latencies: list[float] = field(default_factory=list)
    refused: int = 0
    other: Counter[str] = field(default_factory=Counter)

    def p(self, percent: float) -> float:
        """A percentile of the latency, in seconds."""
        return float(np.percentile(self.latencies, percent)) if self.latencies else float("nan")


@dataclass(frozen=True)
class Capacity:
    """One closed loop."""

    clients: int
    answered: int
    groups_per_s: float
    tokens_per_s: float
    p50_s: float
    p99_s: float
    refused: int
    other: dict[str, int]


@dataclass(frozen=True)
class Stream:
    """One stream."""

    groups_per_s: float
    tokens_per_s: float


@dataclass(frozen=True)
class Flood:
    """Calls that came whatever became of the earlier ones; `answered` of them while they came."""

    tally: Tally
    seconds: float
    offered: int
    answered: int

    @property
    def groups_per_s(self) -> float:
        """Answered groups, while calls came."""
        return self.answered / self.seconds


class Groups:
    """Requests, of which no two are equal."""

    def __init__(self, num_completions: int) -> None:
        self.num_completions = num_completions
        self._numbers = itertools.count()

    def draw(self) -> pb.ScoreRequest:
        """The next one."""
        drawn = random.Random(next(self._numbers))
        question = " ".join(drawn.choices(WORDS, k=NUM_WORDS)) + f" {drawn.random():.9f}?"
        texts = [" ".join(drawn.choices(WORDS, k=NUM_WORDS)) for _ in range(self.num_completions)]
        return pb.ScoreRequest(
            messages=pb.Messages(messages=[pb.Message(role="user", content=question)]),
            completions=[pb.Completion(text=pb.CompletionText(text=text, is_finished=True)) for text in texts],
        )


async def ask(stub: Any, request: pb.ScoreRequest, tally: Tally, client: str) -> float:
    """One call; returns the seconds to leave the server alone."""
    started = time.monotonic()
    try:
        await stub.Score(request, timeout=300, metadata=[("winnow-client", client)])
    except grpc.aio.AioRpcError as error:
        pushback = dict(error.trailing_metadata() or ()).get(PUSHBACK_KEY)
        if error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED and pushback is not None:
            tally.refused += 1
            return int(pushback) / 1000
        tally.other[error.code().name] += 1
        return 1.0
    tally.latencies.append(time.monotonic() - started)
    return 0.0


def channel(address: str) -> Any:
    """A connection that is shared with no other caller."""
    return grpc.aio.insecure_channel(address, options=OWN_CONNECTION)


async def closed_loop(target: Server, groups: Groups, clients: int, seconds: float) -> Capacity:
    """Each caller asks, waits for the answer, and asks again."""
    tally, before = Tally(), target.sample()

    async def caller(name: str) -> None:
        async with channel(target.address) as own:
            stub = RewardServiceStub(own)  # type: ignore[no-untyped-call]
            while time.monotonic() < before.time + seconds:
                await asyncio.sleep(await ask(stub, groups.draw(), tally, name))

    await asyncio.gather(*(caller(str(number)) for number in range(clients)))
    after = target.sample()
    spent = after.time - before.time
    return Capacity(
        clients,
        len(tally.latencies),
        len(tally.latencies) / spent,
        (after.tokens - before.tokens) / spent,
        tally.p(50),
        tally.p(99),
        tally.refused,
        dict(tally.other),
    )


async def streamed(target: Server, groups: Groups, seconds: float) -> Stream:
    """One caller sends group after group, some of them ahead of the answers."""
    before, num_answers, ahead = target.sample(), 0, asyncio.Semaphore(STREAM_AHEAD)

    async def requests() -> AsyncIterator[pb.ScoreRequest]:
        while time.monotonic() < before.time + seconds:
            await ahead.acquire()
            yield groups.draw()

    async with channel(target.address) as own:
        stub: Any = RewardServiceStub(own)  # type: ignore[no-untyped-call]
        async for _ in stub.ScoreStream(requests()):
            num_answers += 1
            ahead.release()
    after = target.sample()
    spent = after.time - before.time
    return Stream(num_answers / spent, (after.tokens - before.tokens) / spent)


async def flood(target: Server, groups: Groups, per_s: float, seconds: float, names: Iterator[str]) -> Flood:
    """Calls at a steady rate, each by the next name, over connections in turn."""
    tally, offered = Tally(), 0
    channels = [channel(target.address) for _ in range(NUM_CONNECTIONS)]
    stubs = itertools.cycle([RewardServiceStub(own) for own in channels])  # type: ignore[no-untyped-call]
    calls: set[asyncio.Task[float]] = set()
    started = time.monotonic()
    while (now := time.monotonic()) < started + seconds:
        for _ in range(int((now - started) * per_s) - offered):
            offered += 1
            call = asyncio.ensure_future(ask(next(stubs), groups.draw(), tally, next(names)))
            calls.add(call)
            call.add_done_callback(calls.discard)
        await asyncio.sleep(TICK_S)
    spent, answered = time.monotonic() - started, len(tally.latencies)
    await asyncio.gather(*calls)
    for own in channels:
        await own.close()
    return Flood(tally, spent, offered, answered)
