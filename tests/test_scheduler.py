"""Sharing a server: fair turns, full queues, deadlines, callers that leave, poison, streams; over real gRPC."""

import asyncio
import json
import logging
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from reward_server.pb import reward_pb2 as pb
from reward_server.pb.reward_pb2_grpc import RewardServiceStub
from reward_server.scheduling import scheduler
from reward_server.scoring.load_pair import open_pair
from reward_server.scoring.model_pair import Pair
from reward_server.serving.server import start
from reward_server.serving.service import PUSHBACK_KEY, SERVICE_NAME
from tests.served import HeldEngine, Served, held, served, wait_until
from tests.tiny_models import make_model
from winnow.serve_config import QueueConfig, ServeConfig

PROMPT, COMPLETION = [0, 9, 10, 11], [12, 13]
TOKENS = 2 * (len(PROMPT) + len(COMPLETION))  # what a group costs: both models
POISON = 200


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ServeConfig:
    root = tmp_path_factory.mktemp("pair")
    folders: list[Path] = [make_model("llama", root / name, seed) for seed, name in enumerate(["instruct", "base"])]
    return ServeConfig(
        instruct=str(folders[0]),
        base=str(folders[1]),
        chat_template="lab",
        listen="127.0.0.1:0",
        dtype="float32",
        device_map="cpu",
        token_budget=TOKENS,  # two groups a batch
        cache_bytes=0,
    )


@pytest.fixture(scope="module")
def pair(config: ServeConfig) -> Pair:
    return open_pair(config)


class Bench:
    """A server whose engine can be held, and callers with names."""

    def __init__(self, server: Served, engine: HeldEngine) -> None:
        self.server = server
        self.engine = engine
        self.channel = grpc.insecure_channel(server.address)
        self.stub: Any = RewardServiceStub(self.channel)  # type: ignore[no-untyped-call]
        self.queue = server.running.service.scheduler.queue

    def call(self, marker: int = 9, client: str = "a", timeout: float = 60.0) -> Any:
        """A call in progress; `marker` is a token of its prompt."""
        return self.stub.Score.future(request(marker), timeout=timeout, metadata=[("winnow-client", client)])

    def hold(self) -> Any:
        """Let the engine compute one group for as long as it is held; returns that group's call."""
        self.engine.may_compute.clear()
        first = self.call(marker=100)
        wait_until(lambda: bool(self.engine.asked), "the first batch")
        return first

    def calls_wait(self, number: int) -> None:
        wait_until(lambda: self.queue.groups == number, f"{number} groups in the queue")

    def markers(self) -> list[list[int]]:
        """The markers of each batch, but for the one that was held."""
        return [[group.prompt_ids[1] for group in groups] for groups in self.engine.asked[1:]]


def request(marker: int = 9, request_id: str = "") -> pb.ScoreRequest:
    return pb.ScoreRequest(
        request_id=request_id,
        prompt_token_ids=pb.TokenIds(ids=[0, marker, 10, 11]),
        completions=[pb.Completion(token_ids=pb.TokenIds(ids=COMPLETION))],
    )


def bench_of(config: ServeConfig, pair: Pair) -> Iterator[Bench]:
    with_hold, engine = held(pair, POISON)
    with served(config, with_hold) as server:
        bench = Bench(server, engine)
        yield bench
        engine.may_compute.set()
        bench.channel.close()


@pytest.fixture
def bench(config: ServeConfig, pair: Pair) -> Iterator[Bench]:
    yield from bench_of(config, pair)


@pytest.fixture
def small(config: ServeConfig, pair: Pair) -> Iterator[Bench]:
    """A server whose queue takes four groups."""
    yield from bench_of(config.model_copy(update={"queue": QueueConfig(max_tokens=4 * TOKENS)}), pair)


def status(call: Any) -> grpc.StatusCode:
    code: grpc.StatusCode = call.exception(timeout=30).code()
    return code


def test_a_client_that_sends_much_does_not_hold_up_another(bench: Bench) -> None:
    first = bench.hold()
    many = []
    for number in range(6):
        many.append(bench.call(20 + number, "many"))
        bench.calls_wait(number + 1)
    few = [bench.call(40, "few")]
    bench.calls_wait(7)
    bench.engine.may_compute.set()
    for call in [first, *many, *few]:
        assert call.result(timeout=30).completions[0].status == pb.STATUS_OK
    flat = [marker for batch in bench.markers() for marker in batch]
    assert flat.index(40) <= 2
    assert [marker for marker in flat if marker != 40] == [20 + number for number in range(6)]


def test_calls_that_come_together_to_an_idle_server_make_one_batch(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "GATHER_S", 0.5)
    for call in [bench.call(20, "a"), bench.call(21, "b")]:
        assert call.result(timeout=30).completions
    assert [sorted(group.prompt_ids[1] for group in groups) for groups in bench.engine.asked] == [[20, 21]]


def test_groups_of_several_callers_share_a_batch(bench: Bench) -> None:
    bench.hold()
    calls = [bench.call(20, "a"), bench.call(21, "b")]
    bench.calls_wait(2)
    bench.engine.may_compute.set()
    assert all(call.result(timeout=30).completions for call in calls)
    assert sorted(bench.markers()[0]) == [20, 21]
    wait_until(lambda: bench.server.metric("winnow_batch_tokens_count") == 2, "both batches counted")
    assert bench.server.metric("winnow_tokens_total") == 3 * TOKENS


def test_a_full_queue_pushes_back_and_what_it_took_is_answered(small: Bench) -> None:
    calls = [small.hold()]
    for client in "abcd":
        calls.append(small.call(client=client))
        small.calls_wait(len(calls) - 1)
    refused = small.call(client="e")
    error = refused.exception(timeout=30)
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert int(dict(error.trailing_metadata())[PUSHBACK_KEY]) >= 100
    assert small.queue.tokens == 4 * TOKENS
    small.engine.may_compute.set()
    assert all(call.result(timeout=30).completions[0].status == pb.STATUS_OK for call in calls)
    assert small.server.metric("winnow_refused_total", reason="queue_full") == 1


def test_one_client_cannot_fill_the_queue(small: Bench) -> None:
    small.hold()
    kept = [small.call(client="greedy"), small.call(client="greedy")]
    small.calls_wait(2)
    assert status(small.call(client="greedy")) == grpc.StatusCode.RESOURCE_EXHAUSTED
    kept.append(small.call(client="other"))
    small.calls_wait(3)
    small.engine.may_compute.set()
    assert all(call.result(timeout=30) for call in kept)


def test_a_stream_waits_where_a_call_would_be_refused(small: Bench) -> None:
    small.engine.may_compute.clear()
    answers = small.stub.ScoreStream(iter([request(request_id=str(number)) for number in range(40)]), timeout=60)
    small.calls_wait(2)
    small.engine.may_compute.set()
    assert [answer.request_id for answer in answers] == [str(number) for number in range(40)]


def test_a_stream_has_several_groups_in_the_line_at_once(bench: Bench) -> None:
    answers = bench.stub.ScoreStream(iter([request(20 + number) for number in range(12)]), timeout=60)
    bench.engine.may_compute.clear()
    wait_until(lambda: bench.queue.groups > 4, "a line of groups")
    bench.engine.may_compute.set()
    assert len(list(answers)) == 12
    assert max(len(batch) for batch in bench.markers()) == 2


def test_a_malformed_request_ends_a_stream_by_name_after_the_answers_before_it(bench: Bench) -> None:
    sent = [request(request_id="good"), pb.ScoreRequest(request_id="bad"), request(request_id="after")]
    answers = bench.stub.ScoreStream(iter(sent), timeout=60)
    assert next(answers).request_id == "good"
    with pytest.raises(grpc.RpcError, match="request 'bad': completions should be 1 to") as caught:
        next(answers)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    wait_until(lambda: not bench.queue.groups, "an empty queue")


def test_a_deadline_that_cannot_be_met_is_refused_at_once(bench: Bench) -> None:
    bench.hold()
    waiting = bench.call()
    bench.calls_wait(1)
    bench.queue.throughput.add(1, 100.0)  # as after slow batches
    error = bench.call(client="b", timeout=20.0).exception(timeout=10)
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert "it would take about 3600.0 s" in error.details()
    bench.engine.may_compute.set()
    assert waiting.result(timeout=30)


def test_a_caller_that_leaves_frees_its_place_and_costs_no_compute(bench: Bench) -> None:
    first = bench.hold()
    gone, stays = bench.call(20, "gone"), bench.call(21, "stays")
    bench.calls_wait(2)
    gone.cancel()
    bench.calls_wait(1)
    bench.engine.may_compute.set()
    assert first.result(timeout=30)
    assert stays.result(timeout=30)
    assert bench.markers() == [[21]]
    assert bench.server.metric("winnow_dropped_total", reason="caller_left") == 1


def test_a_caller_killed_in_mid_stream_leaves_an_empty_queue(bench: Bench) -> None:
    bench.hold()
    channel, never = grpc.insecure_channel(bench.server.address), threading.Event()
    stub: Any = RewardServiceStub(channel)  # type: ignore[no-untyped-call]

    def endless() -> Iterator[pb.ScoreRequest]:
        yield from (request(20 + number) for number in range(8))
        never.wait(60)

    stream = stub.ScoreStream(endless())
    bench.calls_wait(8)
    channel.close()
    bench.calls_wait(0)
    never.set()
    assert stream.code() == grpc.StatusCode.CANCELLED
    bench.engine.may_compute.set()
    assert bench.call().result(timeout=30).completions[0].status == pb.STATUS_OK


def test_poison_fails_alone(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.hold()
    poison = bench.call(POISON, "a")
    mate = bench.call(21, "b")
    bench.calls_wait(2)
    bench.engine.may_compute.set()
    assert mate.result(timeout=30).completions[0].status == pb.STATUS_OK
    assert status(poison) == grpc.StatusCode.INTERNAL
    assert bench.markers()[0] in ([POISON, 21], [21, POISON])
    assert bench.call().result(timeout=30).completions[0].status == pb.STATUS_OK
    assert any(record.exc_info for record in caplog.records)


def test_malformed_requests_do_not_wait_for_the_engine(bench: Bench) -> None:
    bench.hold()
    error = bench.stub.Score.future(pb.ScoreRequest(request_id="bad"), timeout=30).exception(timeout=30)
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    bad = request()
    bad.completions[0].token_ids.ids[:] = [50_000]
    response = bench.stub.Score(bad, timeout=30)
    assert response.completions[0].status == pb.STATUS_INVALID_TOKEN


def test_known_results_are_not_computed_again(
    config: ServeConfig, pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="winnow.calls")
    with_hold, engine = held(pair)
    with (
        served(config.model_copy(update={"cache_bytes": 10**6}), with_hold) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        stub: Any = RewardServiceStub(channel)  # type: ignore[no-untyped-call]
        answers = [stub.Score(request(request_id="r"), timeout=30) for _ in range(3)]
        assert len(engine.asked) == 1
        assert answers[0] == answers[1] == answers[2]
        assert server.metric("winnow_cache_hits") == 4  # two models, two calls
        assert server.metric("winnow_cache_bytes") > 0
    assert [line["cached"] for line in call_lines(caplog)] == [0, 1, 1]


def call_lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [json.loads(record.getMessage()) for record in caplog.records if record.name == "winnow.calls"]


def test_a_call_is_one_json_line_without_its_texts(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="winnow.calls")
    said = pb.Messages(messages=[pb.Message(role="user", content="secret question")])
    completion = pb.Completion(text=pb.CompletionText(text="secret answer"))
    bench.stub.Score(pb.ScoreRequest(request_id="r1", messages=said, completions=[completion] * 2), timeout=30)
    list(bench.stub.ScoreStream(iter([request(), request()]), timeout=30, metadata=[("winnow-client", "me")]))
    wait_until(lambda: len(call_lines(caplog)) == 2, "two lines")
    one, stream = call_lines(caplog)
    assert (one["method"], one["request_id"], one["code"]) == ("Score", "r1", "OK")
    assert (one["groups"], one["completions"]) == (1, 2)
    assert one["tokens"] > 0
    assert one["compute_s"] > 0
    assert (stream["method"], stream["groups"], stream["client"]) == ("ScoreStream", 2, "ipv4:127.0.0.1/me")
    assert "secret" not in caplog.text


def test_the_service_survives_malformed_bytes(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """The fuzzer in small; benchmarks/serving.py --fuzz 10000 does the big one."""
    send = bench.channel.unary_unary(f"/{SERVICE_NAME}/Score", request_serializer=bytes, response_deserializer=bytes)
    drawn, whole = random.Random(7), request().SerializeToString()

    def code(data: bytes) -> str:
        error = send.future(data, timeout=30).exception(timeout=30)
        return "OK" if error is None else str(error.code().name)

    with ThreadPoolExecutor(8) as threads:
        codes = set(threads.map(code, [malformed(drawn, whole) for _ in range(1000)]))
    assert codes == {"OK", "INVALID_ARGUMENT"}
    assert bench.queue.groups == 0
    assert bench.call().result(timeout=30).completions[0].status == pb.STATUS_OK
    assert "Traceback" not in caplog.text


def test_errors_quote_little_of_what_was_sent(bench: Bench) -> None:
    message = pb.Message(role="x" * 100_000, content="Hi")
    completions = [pb.Completion(text=pb.CompletionText(text="a"))] * 50
    answer = bench.stub.Score(pb.ScoreRequest(messages=pb.Messages(messages=[message]), completions=completions))
    assert [score.status for score in answer.completions] == [pb.STATUS_INVALID_CONVERSATION] * 50
    assert answer.ByteSize() < 50 * 600


def test_a_long_request_id_hides_no_error(bench: Bench) -> None:
    call = bench.stub.Score.future(pb.ScoreRequest(request_id="x" * 100_000), timeout=30)
    assert status(call) == grpc.StatusCode.INVALID_ARGUMENT
    assert "completions should be 1 to" in call.exception().details()


def test_a_stream_that_opens_as_the_server_stops_is_told(bench: Bench) -> None:
    async def stop() -> None:
        bench.server.running.service.stop_streams()

    bench.server.do(stop())
    stream = bench.stub.ScoreStream(iter([request()]), timeout=30)
    with pytest.raises(grpc.RpcError):
        list(stream)
    assert stream.code() == grpc.StatusCode.UNAVAILABLE


def malformed(drawn: random.Random, whole: bytes) -> bytes:
    """Noise, or a request with some bytes changed, cut off or doubled."""
    if drawn.random() < 0.3:
        return drawn.randbytes(drawn.randrange(200))
    data = bytearray(whole)
    for _ in range(drawn.randint(1, 4)):
        data[drawn.randrange(len(data))] = drawn.randrange(256)
    return bytes(data[: drawn.randint(1, len(data))] if drawn.random() < 0.5 else data)


def test_an_idle_stream_does_not_delay_the_end(config: ServeConfig, pair: Pair) -> None:
    code, seconds = asyncio.run(drained_with_idle_stream(config, pair))
    assert code == grpc.StatusCode.UNAVAILABLE
    assert seconds < 10


async def drained_with_idle_stream(config: ServeConfig, pair: Pair) -> tuple[grpc.StatusCode, float]:

    running = await start(config, pair)
    async with grpc.aio.insecure_channel(running.address) as channel:
        stub: Any = RewardServiceStub(channel)  # type: ignore[no-untyped-call]
        stream = stub.ScoreStream()
        await stream.write(request(request_id="one"))
        assert (await stream.read()).request_id == "one"
        loop = asyncio.get_running_loop()
        started = loop.time()
        await running.drain(20.0)
        return await stream.code(), loop.time() - started


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's own")
def test_the_allocator_takes_its_settings() -> None:
    program = "from reward_server.engines.allocator import keep_memory; print(keep_memory())"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "True\n"
