"""A server shared by several clients, over real gRPC: fairness, full queues, deadlines, callers that leave, streams."""

import asyncio
import json
import logging
import random
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from reward_server.pb import reward_pb2 as pb
from reward_server.pb.reward_pb2_grpc import RewardServiceStub
from reward_server.protocol import PUSHBACK_KEY, SERVICE_NAME
from reward_server.scoring.model_pair import Pair
from reward_server.serving.auth import load_auth
from reward_server.serving.server import start
from tests.pairs import open_pair
from tests.processes import wait_until
from tests.served import TOKENS_OF_REQUEST, HeldServer, tiny_serve_config, token_request
from winnow.serve_config import QueueConfig, ServeConfig

POISON = 200


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ServeConfig:
    # The budget is for each of two models: a batch holds two groups.
    return tiny_serve_config(tmp_path_factory.mktemp("pair"), token_budget=TOKENS_OF_REQUEST, cache_bytes=0)


@pytest.fixture(scope="module")
def pair(config: ServeConfig) -> Pair:
    return open_pair(config)


@pytest.fixture
def server(config: ServeConfig, pair: Pair) -> Iterator[HeldServer]:
    with HeldServer(config, pair, POISON) as held_server:
        yield held_server


@pytest.fixture
def small_server(config: ServeConfig, pair: Pair) -> Iterator[HeldServer]:
    """Yield a server whose queue has capacity for four groups."""
    small_queue = QueueConfig(max_tokens=4 * TOKENS_OF_REQUEST)
    with HeldServer(config.model_copy(update={"queue": small_queue}), pair, POISON) as held_server:
        yield held_server


def status_code(call: Any) -> grpc.StatusCode:
    code: grpc.StatusCode = call.exception(timeout=30).code()
    return code


def test_a_client_with_many_groups_does_not_delay_another_client(server: HeldServer) -> None:
    calls = [server.hold()]
    for index in range(6):
        calls.append(server.call(20 + index, "many"))
        server.wait_for_groups(index + 1)
    calls.append(server.call(40, "few"))
    server.wait_for_groups(7)
    server.engine.may_compute.set()
    for call in calls:
        assert call.result(timeout=30).completions[0].status == pb.STATUS_OK
    order: list[int] = []
    for markers in server.markers_after_hold():
        order += markers
    assert order.index(40) <= 2
    assert [marker for marker in order if marker != 40] == [20 + index for index in range(6)]


def test_groups_of_several_clients_share_a_batch(server: HeldServer) -> None:
    server.hold()
    calls = [server.call(20, "a"), server.call(21, "b")]
    server.wait_for_groups(2)
    server.engine.may_compute.set()
    assert all(call.result(timeout=30).completions for call in calls)
    assert sorted(server.markers_after_hold()[0]) == [20, 21]
    wait_until(lambda: server.metric("winnow_batch_tokens_count") == 2, "both batches counted")
    assert server.metric("winnow_tokens_total") == 3 * TOKENS_OF_REQUEST


def test_a_full_queue_pushes_back_and_computes_the_groups_that_it_admitted(small_server: HeldServer) -> None:
    calls = [small_server.hold()]
    for client in "abcd":
        calls.append(small_server.call(client=client))
        small_server.wait_for_groups(len(calls) - 1)
    error = small_server.call(client="e").exception(timeout=30)
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert int(dict(error.trailing_metadata())[PUSHBACK_KEY]) >= 100
    assert small_server.queue.num_tokens == 4 * TOKENS_OF_REQUEST
    small_server.engine.may_compute.set()
    assert all(call.result(timeout=30).completions[0].status == pb.STATUS_OK for call in calls)
    assert small_server.metric("winnow_refused_total", reason="queue_full") == 1


def test_one_client_cannot_fill_the_queue(small_server: HeldServer) -> None:
    small_server.hold()
    admitted = [small_server.call(client="greedy"), small_server.call(client="greedy")]
    small_server.wait_for_groups(2)
    assert status_code(small_server.call(client="greedy")) == grpc.StatusCode.RESOURCE_EXHAUSTED
    admitted.append(small_server.call(client="modest"))
    small_server.wait_for_groups(3)
    small_server.engine.may_compute.set()
    assert all(call.result(timeout=30) for call in admitted)


def test_a_stream_waits_when_a_call_would_be_refused(small_server: HeldServer) -> None:
    small_server.engine.may_compute.clear()
    request_ids = [str(index) for index in range(40)]
    requests = [token_request(request_id=request_id) for request_id in request_ids]
    responses = small_server.stub.ScoreStream(iter(requests), timeout=60)
    small_server.wait_for_groups(2)
    small_server.engine.may_compute.set()
    assert [response.request_id for response in responses] == request_ids


def test_a_stream_has_several_groups_in_the_queue_at_once(server: HeldServer) -> None:
    server.engine.may_compute.clear()
    responses = server.stub.ScoreStream(iter([token_request(20 + index) for index in range(12)]), timeout=60)
    wait_until(lambda: server.queue.num_groups > 4, "several groups in the queue")
    server.engine.may_compute.set()
    assert len(list(responses)) == 12
    assert max(len(markers) for markers in server.markers_after_hold()) == 2


def test_a_malformed_request_ends_a_stream_after_the_responses_before_it(server: HeldServer) -> None:
    requests = [token_request(request_id="good"), pb.ScoreRequest(request_id="bad"), token_request(request_id="after")]
    responses = server.stub.ScoreStream(iter(requests), timeout=60)
    assert next(responses).request_id == "good"
    with pytest.raises(grpc.RpcError, match="request 'bad': completions should be 1 to") as caught:
        next(responses)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    wait_until(lambda: not server.queue.num_groups, "an empty queue")


def test_a_deadline_that_cannot_be_met_is_refused_at_once(server: HeldServer) -> None:
    server.hold()
    waiting = server.call()
    server.wait_for_groups(1)
    server.queue.throughput.add(1, 100.0)  # a slow batch
    error = server.call(client="b", timeout=20.0).exception(timeout=10)
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    # Three groups of 12 tokens at 0.01 tokens per second, less the seconds since the first one was held.
    estimate = re.search(r"it would take about (\d+\.\d) s", error.details())
    assert estimate is not None
    assert 3570.0 < float(estimate[1]) <= 3600.0
    server.engine.may_compute.set()
    assert waiting.result(timeout=30)


def test_a_caller_that_leaves_frees_its_place_and_is_not_computed(server: HeldServer) -> None:
    first = server.hold()
    gone = server.call(20, "gone")
    staying = server.call(21, "staying")
    server.wait_for_groups(2)
    gone.cancel()
    server.wait_for_groups(1)
    server.engine.may_compute.set()
    assert first.result(timeout=30)
    assert staying.result(timeout=30)
    assert server.markers_after_hold() == [[21]]
    assert server.metric("winnow_dropped_total", reason="caller_left") == 1


def test_a_caller_that_dies_during_a_stream_leaves_an_empty_queue(server: HeldServer) -> None:
    server.hold()
    channel = grpc.insecure_channel(server.address)
    is_over = threading.Event()
    stub: Any = RewardServiceStub(channel)  # type: ignore[no-untyped-call]

    def send_and_keep_open() -> Iterator[pb.ScoreRequest]:
        yield from (token_request(20 + index) for index in range(8))
        is_over.wait(60)

    stream = stub.ScoreStream(send_and_keep_open())
    server.wait_for_groups(8)
    channel.close()
    server.wait_for_groups(0)
    is_over.set()
    assert stream.code() == grpc.StatusCode.CANCELLED
    server.engine.may_compute.set()
    assert server.call().result(timeout=30).completions[0].status == pb.STATUS_OK


def test_a_group_that_breaks_the_engine_fails_alone(server: HeldServer, caplog: pytest.LogCaptureFixture) -> None:
    server.hold()
    poisonous = server.call(POISON, "a")
    harmless = server.call(21, "b")
    server.wait_for_groups(2)
    server.engine.may_compute.set()
    assert harmless.result(timeout=30).completions[0].status == pb.STATUS_OK
    assert status_code(poisonous) == grpc.StatusCode.INTERNAL
    assert sorted(server.markers_after_hold()[0]) == [21, POISON]
    assert server.call().result(timeout=30).completions[0].status == pb.STATUS_OK
    assert any(record.exc_info for record in caplog.records)


def test_malformed_requests_do_not_wait_for_the_engine(server: HeldServer) -> None:
    server.hold()
    error = server.stub.Score.future(pb.ScoreRequest(request_id="bad"), timeout=30).exception(timeout=30)
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    request = token_request()
    request.completions[0].token_ids.ids[:] = [50_000]
    response = server.stub.Score(request, timeout=30)
    assert response.completions[0].status == pb.STATUS_INVALID_TOKEN


def test_cached_results_are_not_computed_again(
    config: ServeConfig, pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="winnow.calls")
    with HeldServer(config.model_copy(update={"cache_bytes": 10**6}), pair) as server:
        responses = [server.stub.Score(token_request(request_id="r"), timeout=30) for _ in range(3)]
        assert len(server.engine.calls) == 1
        assert responses[0] == responses[1] == responses[2]
        assert server.metric("winnow_cache_hits") == 4  # two models, two calls
        assert server.metric("winnow_cache_bytes") > 0
    assert [entry["cached"] for entry in call_log_entries(caplog)] == [0, 1, 1]


def call_log_entries(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [json.loads(record.getMessage()) for record in caplog.records if record.name == "winnow.calls"]


def test_a_call_is_logged_as_one_json_line_without_its_texts(
    server: HeldServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="winnow.calls")
    messages = pb.Messages(messages=[pb.Message(role="user", content="secret question")])
    completion = pb.Completion(text=pb.CompletionText(text="secret answer"))
    server.stub.Score(pb.ScoreRequest(request_id="r1", messages=messages, completions=[completion] * 2), timeout=30)
    requests = iter([token_request(), token_request()])
    list(server.stub.ScoreStream(requests, timeout=30, metadata=[("winnow-client", "me")]))
    wait_until(lambda: len(call_log_entries(caplog)) == 2, "two entries in the log")
    call, stream = call_log_entries(caplog)
    assert (call["method"], call["request_id"], call["code"]) == ("Score", "r1", "OK")
    assert (call["groups"], call["completions"]) == (1, 2)
    assert call["tokens"] > 0
    assert call["compute_s"] > 0
    assert (stream["method"], stream["groups"], stream["client"]) == ("ScoreStream", 2, "ipv4:127.0.0.1/me")
    assert "secret" not in caplog.text


def test_the_service_survives_malformed_bytes(server: HeldServer, caplog: pytest.LogCaptureFixture) -> None:
    """A small fuzz test; benchmarks/serving.py --fuzz 10000 runs a large one."""
    send = server.channel.unary_unary(f"/{SERVICE_NAME}/Score", request_serializer=bytes, response_deserializer=bytes)
    generator = random.Random(7)
    valid = token_request().SerializeToString()

    def code_of(data: bytes) -> str:
        error = send.future(data, timeout=30).exception(timeout=30)
        if error is None:
            return "OK"
        return str(error.code().name)

    with ThreadPoolExecutor(8) as threads:
        codes = set(threads.map(code_of, [malformed_bytes(generator, valid) for _ in range(1000)]))
    assert codes == {"OK", "INVALID_ARGUMENT"}
    assert server.queue.num_groups == 0
    assert server.call().result(timeout=30).completions[0].status == pb.STATUS_OK
    assert "Traceback" not in caplog.text


def malformed_bytes(generator: random.Random, valid: bytes) -> bytes:
    """Return random bytes, or a valid request with some bytes changed, and perhaps cut off."""
    if generator.random() < 0.3:
        return generator.randbytes(generator.randrange(200))
    data = bytearray(valid)
    for _ in range(generator.randint(1, 4)):
        data[generator.randrange(len(data))] = generator.randrange(256)
    if generator.random() < 0.5:
        data = data[: generator.randint(1, len(data))]
    return bytes(data)


def test_errors_quote_little_of_the_request(server: HeldServer) -> None:
    message = pb.Message(role="x" * 100_000, content="Hi")
    completions = [pb.Completion(text=pb.CompletionText(text="a"))] * 50
    response = server.stub.Score(pb.ScoreRequest(messages=pb.Messages(messages=[message]), completions=completions))
    assert [score.status for score in response.completions] == [pb.STATUS_INVALID_CONVERSATION] * 50
    assert response.ByteSize() < 50 * 600


def test_a_long_request_id_does_not_hide_the_error(server: HeldServer) -> None:
    call = server.stub.Score.future(pb.ScoreRequest(request_id="x" * 100_000), timeout=30)
    assert status_code(call) == grpc.StatusCode.INVALID_ARGUMENT
    assert "completions should be 1 to" in call.exception().details()


def test_a_stream_that_opens_while_the_server_stops_is_unavailable(server: HeldServer) -> None:
    async def stop_streams() -> None:
        server.running.service.stop_streams()

    server.submit(stop_streams()).result(30)
    stream = server.stub.ScoreStream(iter([token_request()]), timeout=30)
    with pytest.raises(grpc.RpcError):
        list(stream)
    assert stream.code() == grpc.StatusCode.UNAVAILABLE


def test_an_idle_stream_does_not_delay_the_drain(config: ServeConfig, pair: Pair) -> None:
    assert asyncio.run(drain_with_idle_stream(config, pair)) == grpc.StatusCode.UNAVAILABLE


async def drain_with_idle_stream(config: ServeConfig, pair: Pair) -> grpc.StatusCode:
    running = await start(config, pair, load_auth(config))
    async with grpc.aio.insecure_channel(running.address) as channel:
        stub: Any = RewardServiceStub(channel)  # type: ignore[no-untyped-call]
        stream = stub.ScoreStream()
        await stream.write(token_request(request_id="r1"))
        assert (await stream.read()).request_id == "r1"
        # A drain that waited for the stream would take the whole grace of an hour.
        await asyncio.wait_for(running.drain(grace_s=3600.0), 60)
        code: grpc.StatusCode = await stream.code()
        return code
