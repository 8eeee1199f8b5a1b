"""A real server on a free port, end to end: scores against the oracle, statuses, malformed requests, services."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from reward_server.client import CompletionText, Group, RewardClient
from reward_server.pb import reward_pb2 as pb
from reward_server.pb.reward_pb2_grpc import RewardServiceStub
from reward_server.protocol import SERVICE_NAME
from reward_server.scheduling.scheduler import MAX_FAILED_BATCHES
from tests.completions import encode_completion
from tests.oracle import Oracle
from tests.pairs import open_pair
from tests.processes import wait_until
from tests.served import HeldServer, ServerThread, tiny_serve_config
from winnow import __version__
from winnow.chat import Chat, load_tokenizer
from winnow.errors import ChatError, ServerError
from winnow.records import Message

MESSAGES = [{"role": "system", "content": "Be careful."}, {"role": "user", "content": "What is 2 + 3?"}]
TEXTS = [
    "It is 5.",
    "It is six, as the river says.",
    "5",
    "Name a colour of the rainbow, and say why: blue. \u00e9\u4e16",
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerThread]:
    settings = {"token_budget": 100, "max_tokens": 128, "max_completions": 16, "cache_bytes": 0}
    config = tiny_serve_config(tmp_path_factory.mktemp("pair"), "mixtral", **settings)
    with ServerThread(config, open_pair(config)) as server_thread:
        yield server_thread


@pytest.fixture(scope="module")
def chat(server: ServerThread) -> Chat:
    return Chat(load_tokenizer(server.config.instruct), "lab")


Expect = Callable[[str, bool], tuple[float, float, int]]


@pytest.fixture(scope="module")
def expect(server: ServerThread, chat: Chat) -> Expect:
    """Return a function of a text and of whether EOS is scored: instruct logp, base logp, number of scored tokens."""
    instruct_oracle = Oracle(Path(server.config.instruct))
    base_oracle = Oracle(Path(server.config.base))

    def logps_of(text: str, with_eos: bool) -> tuple[float, float, int]:
        messages = [Message.model_validate(message) for message in MESSAGES]
        prompt_ids, scored_ids = encode_completion(chat, messages, text)
        if not with_eos:
            scored_ids = scored_ids[:-1]
        instruct = instruct_oracle.logp(prompt_ids, scored_ids)
        base = base_oracle.logp(prompt_ids, scored_ids)
        return instruct, base, len(scored_ids)

    return logps_of


@pytest.fixture
def client(server: ServerThread) -> Iterator[RewardClient]:
    with RewardClient(server.address, timeout_s=60) as connected:
        yield connected


@pytest.fixture
def channel(server: ServerThread) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address) as connected:
        yield connected


def test_rewards_equal_the_oracles(expect: Expect, client: RewardClient) -> None:
    for scored, text in zip(client.score(MESSAGES, TEXTS), TEXTS, strict=True):
        instruct, base, num_tokens = expect(text, True)
        assert (scored.status, scored.error, scored.num_tokens) == ("ok", "", num_tokens)
        assert scored.instruct_logp == pytest.approx(instruct, abs=1e-3)
        assert scored.base_logp == pytest.approx(base, abs=1e-3)
        assert scored.reward == scored.log_ratio == pytest.approx(instruct - base, abs=2e-3)
        assert scored.is_eos_scored
        assert not scored.is_truncated


def test_token_logprobs_sum_to_the_logps(client: RewardClient) -> None:
    for scored, _ in zip(client.score(MESSAGES, TEXTS, want_token_logprobs=True), TEXTS, strict=True):
        assert scored.token_ids is not None
        assert scored.instruct_token_logprobs is not None
        assert scored.base_token_logprobs is not None
        assert len(scored.token_ids) == len(scored.base_token_logprobs) == scored.num_tokens
        assert sum(scored.instruct_token_logprobs) == pytest.approx(scored.instruct_logp, rel=1e-12)
        assert sum(scored.base_token_logprobs) == pytest.approx(scored.base_logp, rel=1e-12)


def test_token_logprobs_come_on_request_only(client: RewardClient) -> None:
    scored = client.score(MESSAGES, TEXTS[:1])[0]
    assert (scored.token_ids, scored.instruct_token_logprobs, scored.base_token_logprobs) == (None, None, None)


def test_options_define_the_reward(expect: Expect, client: RewardClient) -> None:
    instruct, base, num_tokens = expect(TEXTS[0], True)
    scaled = client.score(MESSAGES, TEXTS[:1], normalization="mean", beta=0.5)[0]
    assert scaled.reward == pytest.approx(0.5 * (instruct - base) / num_tokens, abs=1e-3)
    assert scaled.normalization == "mean"
    alone = client.score(MESSAGES, TEXTS[:1], is_reference_free=True)[0]
    assert alone.reward == pytest.approx(instruct, abs=1e-3)
    assert (alone.base_logp, alone.log_ratio) == (None, None)


@pytest.mark.parametrize(
    ("eos_policy", "is_finished", "with_eos"),
    [("include", False, True), ("exclude", True, False), ("if_finished", True, True), ("if_finished", False, False)],
)
def test_the_eos_policy_decides_whether_eos_is_scored(
    expect: Expect, client: RewardClient, eos_policy: Any, is_finished: bool, with_eos: bool
) -> None:
    scored = client.score(MESSAGES, [CompletionText(TEXTS[0], is_finished)], eos_policy=eos_policy)[0]
    instruct, _, num_tokens = expect(TEXTS[0], with_eos)
    assert scored.instruct_logp == pytest.approx(instruct, abs=1e-3)
    assert (scored.num_tokens, scored.is_eos_scored, scored.is_truncated) == (num_tokens, with_eos, not is_finished)


def test_token_ids_get_the_rewards_of_their_texts(chat: Chat, client: RewardClient) -> None:
    messages = [Message.model_validate(message) for message in MESSAGES]
    prompt_ids, completions = chat.encode_completions(messages, TEXTS)
    as_text = [scored.reward for scored in client.score(MESSAGES, TEXTS)]
    completion_ids = [ids for ids in completions if not isinstance(ids, ChatError)]
    for prompt in (MESSAGES, prompt_ids):
        assert [scored.reward for scored in client.score(prompt, completion_ids)] == pytest.approx(as_text, abs=1e-4)


def test_one_bad_completion_never_fails_its_group(client: RewardClient) -> None:
    bad = {"": "empty_completion", "word " * 200: "too_long", "a<|endoftext|>": "control_token"}
    scored = client.score(MESSAGES, [TEXTS[0], *bad, TEXTS[1]])
    assert [completion.status for completion in scored] == ["ok", *bad.values(), "ok"]
    assert [completion.reward for completion in scored[1:-1]] == [None] * len(bad)
    assert all(completion.error for completion in scored[1:-1])
    alone = client.score(MESSAGES, [TEXTS[0], TEXTS[1]])
    rewards_alone = [completion.reward for completion in alone]
    assert [scored[0].reward, scored[-1].reward] == pytest.approx(rewards_alone, abs=1e-4)


@pytest.mark.parametrize(
    ("messages", "status", "error"),
    [
        ([{"role": "tool", "content": "4"}], "invalid_conversation", "unknown role 'tool'"),
        ([{"role": "assistant", "content": "4"}], "invalid_conversation", "should be user"),
        ([{"role": "user", "content": "<|assistant|>"}], "control_token", "control token"),
        ([{"role": "user", "content": "word " * 200}], "too_long", "more than max_tokens 128"),
    ],
)
def test_a_bad_prompt_is_a_status_of_each_completion(
    client: RewardClient, messages: list[dict[str, str]], status: str, error: str
) -> None:
    scored = client.score(messages, TEXTS[:2])
    assert [completion.status for completion in scored] == [status] * 2
    assert all(error in completion.error for completion in scored)


@pytest.mark.parametrize(
    ("completion", "eos_policy", "status"),
    [
        ([9, 9], "include", "missing_eos"),
        ([9, 384], "if_finished", "invalid_token"),
        ([], "if_finished", "empty_completion"),
        ([1], "if_finished", "empty_completion"),
    ],
)
def test_bad_token_ids_have_statuses(client: RewardClient, completion: list[int], eos_policy: Any, status: str) -> None:
    scored = client.score(MESSAGES, [completion, [9, 1]], eos_policy=eos_policy)
    assert [completion.status for completion in scored] == [status, "ok"]


def test_a_score_that_is_not_finite_is_a_status(
    server: ServerThread, client: RewardClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    logprobs = server.pair.base.engine.logprobs

    def overflowing(groups: Any) -> Any:
        values = logprobs(groups)
        values[0][1] = np.full_like(values[0][1], -np.inf)
        return values

    monkeypatch.setattr(server.pair.base.engine, "logprobs", overflowing)
    assert [completion.status for completion in client.score(MESSAGES, TEXTS[:3])] == ["ok", "non_finite", "ok"]


def message(role: str = "user", content: str = "Hi") -> pb.Messages:
    return pb.Messages(messages=[pb.Message(role=role, content=content)])


def text(content: str = "yes") -> pb.Completion:
    return pb.Completion(text=pb.CompletionText(text=content, is_finished=True))


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (pb.ScoreRequest(request_id="r7", completions=[text()]), "request 'r7': the prompt is missing"),
        (pb.ScoreRequest(messages=pb.Messages(), completions=[text()]), "the prompt is missing"),
        (pb.ScoreRequest(messages=message()), "completions should be 1 to 16, are 0"),
        (pb.ScoreRequest(messages=message(), completions=[text()] * 17), "completions should be 1 to 16, are 17"),
        (pb.ScoreRequest(messages=message(), completions=[text(), pb.Completion()]), r"completions\[1\] has neither"),
        (pb.ScoreRequest(prompt_token_ids=pb.TokenIds(ids=[0, 9]), completions=[text()]), "should be token_ids too"),
        (pb.ScoreRequest(messages=message(), completions=[text()], options={"beta": 0}), "options.beta"),
        (pb.ScoreRequest(messages=message(), completions=[text()], options={"beta": float("nan")}), "options.beta"),
        (pb.ScoreRequest(messages=message(), completions=[text()], options={"normalization": 9}), "normalization 9"),
        (pb.ScoreRequest(messages=message(), completions=[text()], options={"eos_policy": 9}), "eos_policy 9"),
    ],
)
def test_a_malformed_request_is_an_invalid_argument(channel: grpc.Channel, request_: Any, error: str) -> None:
    stub = RewardServiceStub(channel)  # type: ignore[no-untyped-call]
    with pytest.raises(grpc.RpcError, match=error) as caught:
        stub.Score(request_, timeout=30)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(grpc.RpcError, match=error):
        list(stub.ScoreStream(iter([request_]), timeout=30))


def test_an_unexpected_error_is_internal_and_the_server_continues(
    server: ServerThread, client: RewardClient, channel: grpc.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = RewardServiceStub(channel)  # type: ignore[no-untyped-call]
    with monkeypatch.context() as broken:
        broken.setattr(server.pair.base.engine, "logprobs", lambda group: 1 / 0)
        with pytest.raises(grpc.RpcError, match="ZeroDivisionError") as caught:
            stub.Score(pb.ScoreRequest(messages=message(), completions=[text()]), timeout=30)
    assert caught.value.code() == grpc.StatusCode.INTERNAL
    assert client.score(MESSAGES, TEXTS[:1])[0].status == "ok"


def test_health_follows_an_engine_that_fails_batch_after_batch(
    server: ServerThread, client: RewardClient, channel: grpc.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    health = HealthStub(channel)

    def statuses() -> set[int]:
        names = ("", SERVICE_NAME)
        return {health.Check(HealthCheckRequest(service=name), timeout=30).status for name in names}

    with monkeypatch.context() as broken:
        broken.setattr(server.pair.base.engine, "logprobs", lambda group: 1 / 0)
        for _ in range(MAX_FAILED_BATCHES):
            assert statuses() == {HealthCheckResponse.SERVING}
            with pytest.raises(ServerError, match="ZeroDivisionError"):
                client.score(MESSAGES, TEXTS[:1])
        wait_until(lambda: statuses() == {HealthCheckResponse.NOT_SERVING}, "NOT_SERVING")
    assert client.score(MESSAGES, TEXTS[:1])[0].status == "ok"
    wait_until(lambda: statuses() == {HealthCheckResponse.SERVING}, "SERVING again")


def test_a_prompt_of_thousands_of_messages_is_not_rendered(client: RewardClient) -> None:
    exchange = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}]
    scored = client.score([*exchange * 20_000, MESSAGES[1]], TEXTS[:2])
    assert [completion.status for completion in scored] == ["too_long"] * 2
    assert "40001 messages, more than 512" in scored[0].error


def test_score_many_keeps_the_order_of_its_groups(client: RewardClient) -> None:
    groups = [Group([{"role": "user", "content": f"What is {i} + 3?"}], TEXTS[: 1 + i % 3]) for i in range(12)]
    one_by_one = [client.score(group.prompt, group.completions) for group in groups]
    concurrent = list(client.score_many(iter(groups), concurrency=4))
    assert [len(scored) for scored in concurrent] == [len(group.completions) for group in groups]
    for scored, expected in zip(concurrent, one_by_one, strict=True):
        expected_rewards = [completion.reward for completion in expected]
        assert [completion.reward for completion in scored] == pytest.approx(expected_rewards, abs=1e-4)


def test_concurrent_calls_get_the_responses_to_their_requests(client: RewardClient) -> None:
    questions = [[{"role": "user", "content": f"What is {number} + 3?"}] for number in range(16)]
    alone = [client.score(question, TEXTS[:2])[1].reward for question in questions]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda question: client.score(question, TEXTS[:2])[1].reward, questions))
    assert together == pytest.approx(alone, abs=1e-4)


def test_groups_of_callers_that_left_are_not_computed(server: ServerThread) -> None:
    with HeldServer(server.config, server.pair) as held_server:
        first = held_server.hold()
        gone = [held_server.call(marker) for marker in range(20, 24)]
        held_server.wait_for_groups(4)
        for call in gone:
            call.cancel()
        held_server.wait_for_groups(0)
        held_server.engine.may_compute.set()
        assert first.result(timeout=30).completions[0].status == pb.STATUS_OK
        assert held_server.call(30).result(timeout=30).completions[0].status == pb.STATUS_OK
        assert held_server.markers_after_hold() == [[30]]


def test_a_call_in_progress_ends_before_the_server_does(server: ServerThread) -> None:
    with HeldServer(server.config, server.pair) as held_server:
        watch = HealthStub(held_server.channel).Watch(HealthCheckRequest(service=SERVICE_NAME), timeout=60)
        assert next(watch).status == HealthCheckResponse.SERVING
        call = held_server.hold()
        draining = held_server.submit(held_server.running.drain(30.0))
        assert next(watch).status == HealthCheckResponse.NOT_SERVING
        assert not call.done()
        assert not draining.done()
        held_server.engine.may_compute.set()
        assert call.result(timeout=30).completions[0].status == pb.STATUS_OK
        draining.result(30)


def test_server_info_describes_the_loaded_models(server: ServerThread, chat: Chat, client: RewardClient) -> None:
    info = client.server_info()
    assert info.winnow_version == __version__
    assert (info.instruct.name, info.base.name) == (server.config.instruct, server.config.base)
    assert (info.instruct.dtype, info.instruct.device, info.instruct.chat_template) == ("float32", "cpu", "lab")
    assert info.instruct.weight_hash != info.base.weight_hash
    assert info.instruct.tokenizer_hash == info.base.tokenizer_hash
    assert info.instruct.template_hash == chat.template_hash
    assert (info.base_prompt, info.has_shared_tokenizer) == ("same", True)
    assert (info.max_tokens, info.max_completions, info.token_budget) == (128, 16, 100)
    limits = (server.config.max_message_bytes, server.config.queue.max_tokens)
    assert (info.max_message_bytes, info.max_queued_tokens) == limits


def test_health_reports_the_server_and_the_service(channel: grpc.Channel, client: RewardClient) -> None:
    for service in ("", SERVICE_NAME):
        response = HealthStub(channel).Check(HealthCheckRequest(service=service), timeout=30)
        assert response.status == HealthCheckResponse.SERVING
    client.wait_until_ready(30)


def test_reflection_names_the_services(channel: grpc.Channel) -> None:
    services = ProtoReflectionDescriptorDatabase(channel).get_services()
    assert {SERVICE_NAME, "grpc.health.v1.Health"} <= set(services)
