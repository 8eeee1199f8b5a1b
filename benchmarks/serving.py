"""How the reward server bears load: a real `winnow serve` process, asked by many callers over raw gRPC stubs.

    capacity   closed loop at 1, 8 and 64 callers: groups/s and tokens/s answered, median and 99th percentile of latency
    stream     the same groups through one stream
    overload   open loop at ten times the capacity: each call is answered, or refused with push-back, or counts as wrong
    fuzz       malformed requests by the thousand: statuses, memory, and whether the server still answers

    goodput_over_capacity = groups/s answered under overload / most groups/s of the closed loops
    p99_bound_s           = the longest that computing these tokens took: a full queue, the batch before, the own batch

The pair is made on the spot (llama, 2 x 2.6 M parameters), the server computes with one thread, and no result comes
from the cache. The callers share the machine with the server; memory is that of the server's processes. Under overload
each call is a client of its own: the k-th group that one client has waiting is done after k fair turns, so that no
bound by the queue holds for it.

    python -m benchmarks.serving [--json] [--quick] [--seconds 60] [--fuzz 10000] [--completions 16]
"""

import argparse
import asyncio
import itertools
import json
import os
import platform
import random
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from benchmarks.serving_process import QUEUE_TOKENS, TOKEN_BUDGET, Sample, Server, longest_s, server
from reward_server.client import RewardClient
from reward_server.pb import reward_pb2 as pb
from reward_server.pb.reward_pb2_grpc import RewardServiceStub
from reward_server.service import PUSHBACK_KEY, SERVICE_NAME

NUM_WORDS = 24
CALLERS = (1, 8, 64)
TIMES_CAPACITY = 10
TICK_S = 0.02
SAMPLE_S = 1.0
# Without a limit, megabytes of requests wait in the connection when time is up.
STREAM_AHEAD = 32
START_S = 180.0
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
class Overload:
    """The open loop."""

    seconds: float
    offered_per_s: float
    times_capacity: float
    answered: int
    refused: int
    other: dict[str, int]
    groups_per_s: float
    goodput_over_capacity: float
    p50_s: float
    p99_s: float
    p99_bound_s: float
    rss_start_mib: float
    rss_end_mib: float
    rss_mib: list[float]


@dataclass(frozen=True)
class Fuzz:
    """The malformed requests."""

    requests: int
    statuses: dict[str, int]
    rss_start_mib: float
    rss_end_mib: float
    queue_groups_after: float
    answers_after: bool


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


async def open_loop(target: Server, groups: Groups, capacity: float, seconds: float) -> Overload:
    """Calls come at ten times the capacity, whatever becomes of them; goodput is taken while they come."""
    tally, samples, offered = Tally(), [target.sample()], 0
    watching = asyncio.ensure_future(watch(target, samples))
    channels = [channel(target.address) for _ in range(max(CALLERS))]
    stubs = itertools.cycle([RewardServiceStub(own) for own in channels])  # type: ignore[no-untyped-call]
    calls: set[asyncio.Task[float]] = set()
    started = time.monotonic()
    while (now := time.monotonic()) < started + seconds:
        for _ in range(int((now - started) * TIMES_CAPACITY * capacity) - offered):
            offered += 1
            call = asyncio.ensure_future(ask(next(stubs), groups.draw(), tally, str(offered)))
            calls.add(call)
            call.add_done_callback(calls.discard)
        await asyncio.sleep(TICK_S)
    spent, answered = time.monotonic() - started, len(tally.latencies)
    await asyncio.gather(*calls)
    watching.cancel()
    for own in channels:
        await own.close()
    rss = [sample.rss_mib for sample in samples]
    return Overload(
        seconds=spent,
        offered_per_s=offered / spent,
        times_capacity=offered / spent / capacity,
        answered=len(tally.latencies),
        refused=tally.refused,
        other=dict(tally.other),
        groups_per_s=answered / spent,
        goodput_over_capacity=answered / spent / capacity,
        p50_s=tally.p(50),
        p99_s=tally.p(99),
        p99_bound_s=longest_s(samples, QUEUE_TOKENS + 2 * 2 * TOKEN_BUDGET),
        rss_start_mib=rss[0],
        rss_end_mib=rss[-1],
        rss_mib=rss[:: max(len(rss) // 12, 1)],
    )


async def watch(target: Server, samples: list[Sample]) -> None:
    """Sample the server until this is cancelled."""
    while True:
        await asyncio.sleep(SAMPLE_S)
        samples.append(await asyncio.to_thread(target.sample))


def malformed(groups: Groups, drawn: random.Random) -> bytes:
    """Noise, or a request with some bytes changed, perhaps cut off."""
    if drawn.random() < 0.3:
        return drawn.randbytes(drawn.randrange(2000))
    data = bytearray(groups.draw().SerializeToString())
    for _ in range(drawn.randint(1, 8)):
        data[drawn.randrange(len(data))] = drawn.randrange(256)
    return bytes(data[: drawn.randint(1, len(data))] if drawn.random() < 0.7 else data)


async def fuzz(target: Server, groups: Groups, number: int) -> Fuzz:
    """Malformed requests, 64 at a time; those that turn out well formed are scored, or refused by a full queue."""
    statuses: Counter[str] = Counter()
    before, remaining = target.rss_mib, iter(range(number))
    async with channel(target.address) as own:
        send = own.unary_unary(f"/{SERVICE_NAME}/Score", request_serializer=bytes, response_deserializer=bytes)

        async def caller(seed: int) -> None:
            drawn = random.Random(seed)
            for _ in remaining:
                try:
                    await send(malformed(groups, drawn), timeout=300)
                    statuses["OK"] += 1
                except grpc.aio.AioRpcError as error:
                    statuses[error.code().name] += 1

        await asyncio.gather(*(caller(seed) for seed in range(64)))
        stub = RewardServiceStub(own)  # type: ignore[no-untyped-call]
        await asyncio.sleep(1.0)
        num_waiting = await asyncio.to_thread(target.metric, "winnow_queue_groups")
        last = await stub.Score(groups.draw(), timeout=60)
    is_ok = all(score.status == pb.STATUS_OK for score in last.completions)
    return Fuzz(number, dict(statuses), before, target.rss_mib, num_waiting, is_ok)


async def measure(target: Server, groups: Groups, seconds: float, num_fuzz: int, *, is_quick: bool) -> dict[str, Any]:
    """The whole report."""
    each_s = 4.0 if is_quick else 15.0
    await closed_loop(target, groups, 8, 2.0)  # to warm up
    capacities = [await closed_loop(target, groups, clients, each_s) for clients in CALLERS]
    stream = await streamed(target, groups, each_s)
    most = max(one.groups_per_s for one in capacities)
    overload = await open_loop(target, groups, most, seconds)
    fuzzed = await fuzz(target, groups, num_fuzz)
    growth = overload.rss_end_mib - overload.rss_mib[len(overload.rss_mib) // 3]
    return {
        "machine": {"cores": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()},
        "workload": {
            "completions": groups.num_completions,
            "queue_tokens": QUEUE_TOKENS,
            "token_budget": TOKEN_BUDGET,
        },
        "capacity": [asdict(one) for one in capacities],
        "stream": asdict(stream),
        "overload": asdict(overload),
        "fuzz": asdict(fuzzed),
        "targets": {
            "answered_or_pushed_back": not overload.other,
            "goodput_at_least_0.9": overload.goodput_over_capacity >= 0.9,
            "p99_within_bound": overload.p99_s <= overload.p99_bound_s,
            "memory_flat": growth <= max(0.05 * overload.rss_end_mib, 20.0),
            "fuzz_statuses": fuzzed.statuses.keys() <= {"OK", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"},
            "fuzz_leaves_no_trace": fuzzed.queue_groups_after == 0 and fuzzed.answers_after,
        },
    }


def show(report: dict[str, Any]) -> None:
    """The report for people."""
    for one in report["capacity"]:
        print(
            f"{one['clients']:3d} callers: {one['groups_per_s']:6.1f} groups/s {one['tokens_per_s']:8.0f} tokens/s, "
            f"p50 {one['p50_s']:.3f} s, p99 {one['p99_s']:.3f} s, {one['refused']} refused"
        )
    for name in ("stream", "overload", "fuzz", "targets"):
        print(name + ": " + ", ".join(f"{key} {value}" for key, value in report[name].items()))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="about two minutes")
    parser.add_argument("--seconds", type=float, help="of overload; 60, or 10 with --quick")
    parser.add_argument("--fuzz", type=int, help="malformed requests; 10000, or 1000 with --quick")
    parser.add_argument("--completions", type=int, default=16, help="of each group; 16 unless given")
    given = parser.parse_args()
    seconds = given.seconds or (10.0 if given.quick else 60.0)
    num_fuzz = given.fuzz or (1000 if given.quick else 10_000)
    with tempfile.TemporaryDirectory() as folder, server(Path(folder)) as target:
        with RewardClient(target.address, timeout_s=START_S) as client:
            client.wait_until_ready(START_S)
        report = asyncio.run(measure(target, Groups(given.completions), seconds, num_fuzz, is_quick=given.quick))
    if given.json:
        print(json.dumps(report))
    else:
        show(report)


if __name__ == "__main__":
    main()
