"""How the reward server bears load: a real `winnow serve` process, asked by many callers over raw gRPC stubs.

    capacity   closed loop at 1, 8 and 64 callers: groups/s and tokens/s answered, median and 99th percentile of latency
    stream     the same groups through one stream
    neighbour  one caller asks and waits, while another client sends at ten times the capacity
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
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc

from benchmarks.serving_load import Capacity, Groups, channel, closed_loop, flood, streamed
from benchmarks.serving_process import QUEUE_TOKENS, TOKEN_BUDGET, Sample, Server, longest_s, server
from reward_server.client import RewardClient
from reward_server.pb import reward_pb2 as pb
from reward_server.pb.reward_pb2_grpc import RewardServiceStub
from reward_server.serving.service import SERVICE_NAME

CALLERS = (1, 8, 64)
TIMES_CAPACITY = 10
SAMPLE_S = 1.0
START_S = 180.0


@dataclass(frozen=True)
class Neighbour:
    """One caller beside a client that sends too much; `alone_p50_s` is what it waits without that one."""

    alone_p50_s: float
    p50_s: float
    p99_s: float
    answered: int
    refused: int
    other: dict[str, int]
    others_per_s: float


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


async def open_loop(target: Server, groups: Groups, capacity: float, seconds: float) -> Overload:
    """Calls come at ten times the capacity, each from a client of its own; goodput is taken while they come."""
    samples = [target.sample()]
    watching = asyncio.ensure_future(watch(target, samples))
    flooded = await flood(target, groups, TIMES_CAPACITY * capacity, seconds, map(str, itertools.count()))
    watching.cancel()
    rss, tally = [sample.rss_mib for sample in samples], flooded.tally
    return Overload(
        seconds=flooded.seconds,
        offered_per_s=flooded.offered / flooded.seconds,
        times_capacity=flooded.offered / flooded.seconds / capacity,
        answered=len(tally.latencies),
        refused=tally.refused,
        other=dict(tally.other),
        groups_per_s=flooded.groups_per_s,
        goodput_over_capacity=flooded.groups_per_s / capacity,
        p50_s=tally.p(50),
        p99_s=tally.p(99),
        p99_bound_s=longest_s(samples, QUEUE_TOKENS + 2 * 2 * TOKEN_BUDGET),
        rss_start_mib=rss[0],
        rss_end_mib=rss[-1],
        rss_mib=rss[:: max(len(rss) // 12, 1)],
    )


async def beside(target: Server, groups: Groups, alone: Capacity, capacity: float, seconds: float) -> Neighbour:
    """One caller in a closed loop, and a client of another name that sends ten times the capacity."""
    flooding = asyncio.ensure_future(
        flood(target, groups, TIMES_CAPACITY * capacity, seconds, itertools.repeat("greedy"))
    )
    await asyncio.sleep(seconds / 4)  # until its part of the queue is full
    loop = await closed_loop(target, groups, 1, seconds / 2)
    flooded = await flooding
    return Neighbour(
        alone_p50_s=alone.p50_s,
        p50_s=loop.p50_s,
        p99_s=loop.p99_s,
        answered=loop.answered,
        refused=loop.refused,
        other=loop.other,
        others_per_s=flooded.groups_per_s,
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
    neighbour = await beside(target, groups, capacities[0], most, 2 * each_s)
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
        "neighbour": asdict(neighbour),
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
    for name in ("stream", "neighbour", "overload", "fuzz", "targets"):
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
