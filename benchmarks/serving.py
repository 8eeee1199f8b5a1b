"""The reward server under load: a real `winnow serve` process, called by many callers through raw gRPC stubs.

    capacity   closed loop at 1, 8 and 64 callers: groups/s and tokens/s answered, median and 99th percentile of latency
    stream     the same groups through one stream
    neighbour  closed loop of one caller, while a second client sends at ten times the capacity
    overload   open loop at ten times the capacity: each call must be answered, or refused with a wait time
    fuzz       thousands of malformed requests: statuses, memory, and a valid request at the end

    goodput_over_capacity = groups/s answered under overload / highest groups/s of the closed loops
    p99_bound_s           = the longest time to compute a full queue and two batches

The pair is generated (llama, 2 x 2.6 M parameters), the server computes with one thread, and the result cache is off.
The callers share the machine with the server; memory is counted over the server's processes. Under overload each call
comes from a different client. The fair queue serves clients in rotation, so the k-th group of one client would wait for
k rotations, and the bound would not hold for it.

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

from benchmarks.serving_load import Capacity, RequestSource, closed_loop, flood, open_channel, streamed
from benchmarks.serving_process import QUEUE_TOKENS, TOKEN_BUDGET, Sample, Server, longest_s, server
from reward_server.client import RewardClient
from reward_server.pb import reward_pb2 as pb
from reward_server.pb.reward_pb2_grpc import RewardServiceStub
from reward_server.protocol import SERVICE_NAME

CALLERS = (1, 8, 64)
# Seconds of overload, and number of malformed requests.
FULL_LIMITS = (60.0, 10_000)
QUICK_LIMITS = (10.0, 1_000)
TIMES_CAPACITY = 10
SAMPLE_S = 1.0
START_TIMEOUT_S = 180.0
NUM_FUZZ_CALLERS = 64


@dataclass(frozen=True)
class Neighbour:
    """The latency of one caller next to a client that sends too much; `alone_p50_s` is the latency without it."""

    alone_p50_s: float
    p50_s: float
    p99_s: float
    answered: int
    refused: int
    failures: dict[str, int]
    others_per_s: float


@dataclass(frozen=True)
class Overload:
    """The result of the open loop."""

    seconds: float
    offered_per_s: float
    times_capacity: float
    answered: int
    refused: int
    failures: dict[str, int]
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
    """The result of the malformed requests."""

    requests: int
    statuses: dict[str, int]
    rss_start_mib: float
    rss_end_mib: float
    queue_groups_after: float
    answers_after: bool


async def measure_overload(target: Server, source: RequestSource, capacity: float, seconds: float) -> Overload:
    """Send calls at ten times the capacity, each from a different client; measure goodput while calls are sent."""
    samples = [target.sample()]
    watch_task = asyncio.ensure_future(watch(target, samples))
    flooded = await flood(target, source, TIMES_CAPACITY * capacity, seconds, map(str, itertools.count()))
    watch_task.cancel()
    rss = [sample.rss_mib for sample in samples]
    tally = flooded.tally
    return Overload(
        seconds=flooded.seconds,
        offered_per_s=flooded.num_offered / flooded.seconds,
        times_capacity=flooded.num_offered / flooded.seconds / capacity,
        answered=len(tally.latencies),
        refused=tally.num_refused,
        failures=dict(tally.failures),
        groups_per_s=flooded.groups_per_s,
        goodput_over_capacity=flooded.groups_per_s / capacity,
        p50_s=tally.percentile(50),
        p99_s=tally.percentile(99),
        p99_bound_s=longest_s(samples, QUEUE_TOKENS + 2 * 2 * TOKEN_BUDGET),
        rss_start_mib=rss[0],
        rss_end_mib=rss[-1],
        rss_mib=rss[:: max(len(rss) // 12, 1)],
    )


async def measure_neighbour(
    target: Server, source: RequestSource, alone: Capacity, capacity: float, seconds: float
) -> Neighbour:
    """Run one caller in a closed loop, while a second client sends at ten times the capacity."""
    flood_task = asyncio.ensure_future(
        flood(target, source, TIMES_CAPACITY * capacity, seconds, itertools.repeat("greedy"))
    )
    await asyncio.sleep(seconds / 4)  # until the second client's share of the queue is full
    loop = await closed_loop(target, source, 1, seconds / 2)
    flooded = await flood_task
    return Neighbour(
        alone_p50_s=alone.p50_s,
        p50_s=loop.p50_s,
        p99_s=loop.p99_s,
        answered=loop.answered,
        refused=loop.refused,
        failures=loop.failures,
        others_per_s=flooded.groups_per_s,
    )


async def watch(target: Server, samples: list[Sample]) -> None:
    """Sample the server until the task is cancelled."""
    while True:
        await asyncio.sleep(SAMPLE_S)
        samples.append(await asyncio.to_thread(target.sample))


def malformed(source: RequestSource, rng: random.Random) -> bytes:
    """Draw random bytes, or a request with changed bytes; the request may be cut off."""
    if rng.random() < 0.3:
        return rng.randbytes(rng.randrange(2000))
    data = bytearray(source.draw().SerializeToString())
    for _ in range(rng.randint(1, 8)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    if rng.random() < 0.7:
        data = data[: rng.randint(1, len(data))]
    return bytes(data)


async def fuzz(target: Server, source: RequestSource, num_requests: int) -> Fuzz:
    """Send malformed requests from 64 callers. A request that is valid by chance is scored, or refused by the queue."""
    statuses: Counter[str] = Counter()
    before = target.rss_mib
    remaining = iter(range(num_requests))
    async with open_channel(target.address) as channel:
        send = channel.unary_unary(f"/{SERVICE_NAME}/Score", request_serializer=bytes, response_deserializer=bytes)

        async def caller(seed: int) -> None:
            rng = random.Random(seed)
            for _ in remaining:
                try:
                    await send(malformed(source, rng), timeout=300)
                    statuses["OK"] += 1
                except grpc.aio.AioRpcError as error:
                    statuses[error.code().name] += 1

        await asyncio.gather(*(caller(seed) for seed in range(NUM_FUZZ_CALLERS)))
        stub = RewardServiceStub(channel)  # type: ignore[no-untyped-call]
        await asyncio.sleep(1.0)
        num_waiting = await asyncio.to_thread(target.metric, "winnow_queue_groups")
        response = await stub.Score(source.draw(), timeout=60)
    is_ok = all(score.status == pb.STATUS_OK for score in response.completions)
    return Fuzz(num_requests, dict(statuses), before, target.rss_mib, num_waiting, is_ok)


async def measure(
    target: Server, source: RequestSource, overload_s: float, num_fuzz: int, *, is_quick: bool
) -> dict[str, Any]:
    """Measure everything; return the report."""
    loop_s = 4.0 if is_quick else 15.0
    await closed_loop(target, source, 8, 2.0)  # to warm up
    capacities = [await closed_loop(target, source, num_clients, loop_s) for num_clients in CALLERS]
    stream = await streamed(target, source, loop_s)
    capacity = max(loop.groups_per_s for loop in capacities)
    neighbour = await measure_neighbour(target, source, capacities[0], capacity, 2 * loop_s)
    overload = await measure_overload(target, source, capacity, overload_s)
    fuzzed = await fuzz(target, source, num_fuzz)
    growth_mib = overload.rss_end_mib - overload.rss_mib[len(overload.rss_mib) // 3]
    return {
        "machine": {"cores": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()},
        "workload": {
            "completions": source.num_completions,
            "queue_tokens": QUEUE_TOKENS,
            "token_budget": TOKEN_BUDGET,
        },
        "capacity": [asdict(loop) for loop in capacities],
        "stream": asdict(stream),
        "neighbour": asdict(neighbour),
        "overload": asdict(overload),
        "fuzz": asdict(fuzzed),
        "targets": {
            "answered_or_pushed_back": not overload.failures,
            "goodput_at_least_0.9": overload.goodput_over_capacity >= 0.9,
            "p99_within_bound": overload.p99_s <= overload.p99_bound_s,
            "memory_flat": growth_mib <= max(0.05 * overload.rss_end_mib, 20.0),
            "fuzz_statuses": fuzzed.statuses.keys() <= {"OK", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"},
            "fuzz_leaves_no_trace": fuzzed.queue_groups_after == 0 and fuzzed.answers_after,
        },
    }


def show(report: dict[str, Any]) -> None:
    """Print the report for people."""
    for row in report["capacity"]:
        print(
            f"{row['clients']:3d} callers: {row['groups_per_s']:6.1f} groups/s {row['tokens_per_s']:8.0f} tokens/s, "
            f"p50 {row['p50_s']:.3f} s, p99 {row['p99_s']:.3f} s, {row['refused']} refused"
        )
    for name in ("stream", "neighbour", "overload", "fuzz", "targets"):
        print(name + ": " + ", ".join(f"{key} {value}" for key, value in report[name].items()))


def main() -> None:
    """Measure, and print a text or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="about two minutes")
    parser.add_argument("--seconds", type=float, help="seconds of overload (default: 60, with --quick 10)")
    parser.add_argument("--fuzz", type=int, help="malformed requests (default: 10000, with --quick 1000)")
    parser.add_argument("--completions", type=int, default=16, help="completions of each group (default: 16)")
    arguments = parser.parse_args()
    default_s, default_fuzz = QUICK_LIMITS if arguments.quick else FULL_LIMITS
    overload_s = arguments.seconds or default_s
    num_fuzz = arguments.fuzz or default_fuzz
    source = RequestSource(arguments.completions)
    with tempfile.TemporaryDirectory() as folder, server(Path(folder)) as target:
        with RewardClient(target.address, timeout_s=START_TIMEOUT_S) as client:
            client.wait_until_ready(START_TIMEOUT_S)
        report = asyncio.run(measure(target, source, overload_s, num_fuzz, is_quick=arguments.quick))
    if arguments.json:
        print(json.dumps(report))
    else:
        show(report)


if __name__ == "__main__":
    main()
