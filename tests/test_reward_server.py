"""A real server on a free port, end to end: scores against the oracle, statuses, malformed requests, services."""

import asyncio
import threading
import time
from collections.abc import Iterator
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
from reward_server.scheduling.scheduler import MAX_FAILED_BATCHES
from reward_server.scoring.load_pair import open_pair
from reward_server.serving.server import check_address_is_free, start
from reward_server.serving.service import SERVICE_NAME
from tests.oracle import Oracle
from tests.served import Served, wait_until
from tests.tiny_models import make_model
from winnow import __version__
from winnow.chat import Chat, load_tokenizer
from winnow.errors import ServerError, UsageError
from winnow.records import Message
from winnow.serve_config import ServeConfig

MESSAGES = [{"role": "system", "content": "Be careful."}, {"role": "user", "content": "What is 2 + 3?"}]
TEXTS = [
    "It is 5.",
    "It is six, as the river says.",
    "5",
    "Name a colour of the rainbow, and say why: blue. \u00e9\u4e16",
]


class Hosted:
    """A server in a thread of its own, with what is needed to check it."""

    def __init__(self, instruct: Path, base: Path) -> None:
        self.config = ServeConfig(
            instruct=str(instruct),
            base=str(base),
            chat_template="lab",
            listen="127.0.0.1:0",
            dtype="float32",
            device_map="cpu",
            token_budget=100,
            max_tokens=128,
            max_completions=16,
            cache_bytes=0,
        )
        self.chat = Chat(load_tokenizer(str(instruct)), "lab")
        self.oracles = (Oracle(instruct), Oracle(base))
        self.pair = open_pair(self.config)
        self.server = Served(self.config, self.pair)
        self.address = self.server.address

    def expected(self, text: str, *, with_eos: bool = True) -> tuple[float, float, int]:
        pair = self.chat.scored_pair([Message.model_validate(one) for one in MESSAGES], text)
        scored = pair.completion_ids if with_eos else pair.completion_ids[:-1]
        instruct, base = (oracle.logp(pair.prompt_ids, scored) for oracle in self.oracles)
        return instruct, base, len(scored)

    def close(self) -> None:
        self.server.close()


@pytest.fixture(scope="module")
def hosted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosted]:
    root = tmp_path_factory.mktemp("served")
    server = Hosted(make_model("mixtral", root / "instruct", seed=1), make_model("mixtral", root / "base", seed=2))
    yield server
    server.close()


@pytest.fixture
def client(hosted: Hosted) -> Iterator[RewardClient]:
    with RewardClient(hosted.address, timeout_s=60) as connected:
        yield connected


@pytest.fixture
def channel(hosted: Hosted) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(hosted.address) as connected:
        yield connected


def test_rewards_are_the_oracle_s(hosted: Hosted, client: RewardClient) -> None:
    for scored, text in zip(client.score(MESSAGES, TEXTS), TEXTS, strict=True):
        instruct, base, num_tokens = hosted.expected(text)
        assert (scored.status, scored.error, scored.num_tokens) == ("ok", "", num_tokens)
        assert scored.instruct_logp == pytest.approx(instruct, abs=1e-3)
        assert scored.base_logp == pytest.approx(base, abs=1e-3)
        assert scored.reward == scored.log_ratio == pytest.approx(instruct - base, abs=2e-3)
        assert scored.is_eos_scored
        assert not scored.is_truncated


def test_token_logprobs_sum_to_the_logps(client: RewardClient) -> None:
    for scored in client.score(MESSAGES, TEXTS, want_token_logprobs=True):
        assert scored.token_ids is not None
        assert scored.instruct_token_logprobs is not None
        assert scored.base_token_logprobs is not None
        assert len(scored.token_ids) == len(scored.base_token_logprobs) == scored.num_tokens
        assert sum(scored.instruct_token_logprobs) == pytest.approx(scored.instruct_logp, rel=1e-12)
        assert sum(scored.base_token_logprobs) == pytest.approx(scored.base_logp, rel=1e-12)


def test_token_logprobs_come_on_request_only(client: RewardClient) -> None:
    scored = client.score(MESSAGES, TEXTS[:1])[0]
    assert (scored.token_ids, scored.instruct_token_logprobs, scored.base_token_logprobs) == (None, None, None)


def test_options_make_the_reward(hosted: Hosted, client: RewardClient) -> None:
    instruct, base, num_tokens = hosted.expected(TEXTS[0])
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
def test_the_eos_policy_is_kept(
    hosted: Hosted, client: RewardClient, eos_policy: Any, is_finished: bool, with_eos: bool
) -> None:
    scored = client.score(MESSAGES, [CompletionText(TEXTS[0], is_finished)], eos_policy=eos_policy)[0]
    instruct, _, num_tokens = hosted.expected(TEXTS[0], with_eos=with_eos)
    assert scored.instruct_logp == pytest.approx(instruct, abs=1e-3)
    assert (scored.num_tokens, scored.is_eos_scored, scored.is_truncated) == (num_tokens, with_eos, not is_finished)


def test_token_ids_score_as_their_text_does(hosted: Hosted, client: RewardClient) -> None:
    messages = [Message.model_validate(one) for one in MESSAGES]
    pairs = [hosted.chat.scored_pair(messages, text) for text in TEXTS]
    as_text = [scored.reward for scored in client.score(MESSAGES, TEXTS)]
    completions = [pair.completion_ids for pair in pairs]
    for prompt in (MESSAGES, pairs[0].prompt_ids):
        assert [scored.reward for scored in client.score(prompt, completions)] == pytest.approx(as_text, abs=1e-4)


def test_one_bad_completion_never_fails_its_group(client: RewardClient) -> None:
    bad = {"": "empty_completion", "word " * 200: "too_long", "a<|endoftext|>": "control_token"}
    scored = client.score(MESSAGES, [TEXTS[0], *bad, TEXTS[1]])
    assert [one.status for one in scored] == ["ok", *bad.values(), "ok"]
    assert [one.reward for one in scored[1:-1]] == [None] * len(bad)
    assert all(one.error for one in scored[1:-1])
    alone = client.score(MESSAGES, [TEXTS[0], TEXTS[1]])
    assert [scored[0].reward, scored[-1].reward] == pytest.approx([one.reward for one in alone], abs=1e-4)


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([{"role": "tool", "content": "4"}], "unknown role 'tool'"),
        ([{"role": "assistant", "content": "4"}], "should be user"),
        ([{"role": "user", "content": "<|assistant|>"}], "control token"),
        ([{"role": "user", "content": "word " * 200}], "more than max_tokens 128"),
    ],
)
def test_a_bad_prompt_is_a_status_of_each_completion(
    client: RewardClient, messages: list[dict[str, str]], error: str
) -> None:
    scored = client.score(messages, TEXTS[:2])
    assert {one.status for one in scored} <= {"invalid_conversation", "control_token", "too_long"}
    assert all(error in one.error for one in scored)


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
    assert [one.status for one in client.score(MESSAGES, [completion, [9, 1]], eos_policy=eos_policy)] == [status, "ok"]


def test_what_is_not_finite_is_a_status(hosted: Hosted, client: RewardClient, monkeypatch: pytest.MonkeyPatch) -> None:
    logprobs = hosted.pair.base.engine.logprobs

    def overflowing(groups: Any) -> Any:
        values = logprobs(groups)
        values[0][1] = np.full_like(values[0][1], -np.inf)
        return values

    monkeypatch.setattr(hosted.pair.base.engine, "logprobs", overflowing)
    assert [one.status for one in client.score(MESSAGES, TEXTS[:3])] == ["ok", "non_finite", "ok"]


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


def test_what_was_not_foreseen_is_internal_and_the_server_goes_on(
    hosted: Hosted, client: RewardClient, channel: grpc.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = RewardServiceStub(channel)  # type: ignore[no-untyped-call]
    with monkeypatch.context() as broken:
        broken.setattr(hosted.pair.base.engine, "logprobs", lambda group: 1 / 0)
        with pytest.raises(grpc.RpcError, match="ZeroDivisionError") as caught:
            stub.Score(pb.ScoreRequest(messages=message(), completions=[text()]), timeout=30)
    assert caught.value.code() == grpc.StatusCode.INTERNAL
    assert client.score(MESSAGES, TEXTS[:1])[0].status == "ok"


def test_health_follows_an_engine_that_fails_batch_after_batch(
    hosted: Hosted, client: RewardClient, channel: grpc.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    health = HealthStub(channel)

    def statuses() -> set[int]:
        names = ("", SERVICE_NAME)
        return {health.Check(HealthCheckRequest(service=name), timeout=30).status for name in names}

    with monkeypatch.context() as broken:
        broken.setattr(hosted.pair.base.engine, "logprobs", lambda group: 1 / 0)
        for _ in range(MAX_FAILED_BATCHES):
            assert statuses() == {HealthCheckResponse.SERVING}
            with pytest.raises(ServerError, match="ZeroDivisionError"):
                client.score(MESSAGES, TEXTS[:1])
        wait_until(lambda: statuses() == {HealthCheckResponse.NOT_SERVING}, "NOT_SERVING")
    assert client.score(MESSAGES, TEXTS[:1])[0].status == "ok"
    wait_until(lambda: statuses() == {HealthCheckResponse.SERVING}, "SERVING again")


def test_a_prompt_of_thousands_of_messages_holds_nobody_up(client: RewardClient) -> None:
    turns = [{"role": role, "content": "a"} for _ in range(20_000) for role in ("user", "assistant")]
    scored = client.score([*turns, MESSAGES[1]], TEXTS[:2])
    assert [one.status for one in scored] == ["too_long"] * 2
    assert "40001 messages, more than 512" in scored[0].error


def test_a_stream_answers_in_the_order_of_its_groups(client: RewardClient) -> None:
    groups = [Group([{"role": "user", "content": f"What is {i} + 3?"}], TEXTS[: 1 + i % 3]) for i in range(12)]
    one_by_one = [client.score(group.prompt, group.completions) for group in groups]
    streamed = list(client.score_many(iter(groups), concurrency=4))
    assert [len(scored) for scored in streamed] == [len(group.completions) for group in groups]
    for ours, theirs in zip(streamed, one_by_one, strict=True):
        assert [one.reward for one in ours] == pytest.approx([one.reward for one in theirs], abs=1e-4)


def test_clients_at_once_get_their_own_answers(client: RewardClient) -> None:
    questions = [[{"role": "user", "content": f"What is {number} + 3?"}] for number in range(16)]
    alone = [client.score(question, TEXTS[:2])[1].reward for question in questions]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda question: client.score(question, TEXTS[:2])[1].reward, questions))
    assert together == pytest.approx(alone, abs=1e-4)


def test_a_caller_that_leaves_takes_its_waiting_groups_along(
    hosted: Hosted, channel: grpc.Channel, client: RewardClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    logprobs, is_free, num_scored = hosted.pair.instruct.engine.logprobs, threading.Event(), 0

    def waiting(group: Any) -> Any:
        nonlocal num_scored
        num_scored += 1
        is_free.wait(30)
        return logprobs(group)

    monkeypatch.setattr(hosted.pair.instruct.engine, "logprobs", waiting)
    stub = RewardServiceStub(channel)  # type: ignore[no-untyped-call]
    request = pb.ScoreRequest(messages=message(), completions=[text()])
    calls = [stub.Score.future(request, timeout=30) for _ in range(5)]
    while num_scored == 0:
        time.sleep(0.01)
    for call in calls[1:]:
        call.cancel()
    client.server_info()
    time.sleep(0.2)
    is_free.set()
    assert calls[0].result().completions[0].status == pb.STATUS_OK
    assert client.score(MESSAGES, TEXTS[:1])[0].status == "ok"
    assert num_scored <= 3


def test_calls_in_progress_end_before_the_server_does(hosted: Hosted, monkeypatch: pytest.MonkeyPatch) -> None:
    logprobs = hosted.pair.instruct.engine.logprobs

    def slow(group: Any) -> Any:
        time.sleep(0.5)
        return logprobs(group)

    monkeypatch.setattr(hosted.pair.instruct.engine, "logprobs", slow)
    response, health = asyncio.run(drained_in_mid_call(hosted))
    assert response.completions[0].status == pb.STATUS_OK
    assert health == HealthCheckResponse.NOT_SERVING


async def drained_in_mid_call(hosted: Hosted) -> tuple[Any, Any]:
    running = await start(hosted.config, hosted.pair)
    async with grpc.aio.insecure_channel(running.address) as channel:
        watch = HealthStub(channel).Watch(HealthCheckRequest(service=SERVICE_NAME))
        assert (await watch.read()).status == HealthCheckResponse.SERVING
        stub = RewardServiceStub(channel)  # type: ignore[no-untyped-call]
        call = asyncio.ensure_future(stub.Score(pb.ScoreRequest(messages=message(), completions=[text()])))
        await asyncio.sleep(0.2)
        draining = asyncio.ensure_future(running.drain(5.0))
        health = (await watch.read()).status
        watch.cancel()
        response = await call
        await draining
    return response, health


def test_the_server_says_what_it_has_loaded(hosted: Hosted, client: RewardClient) -> None:
    info = client.server_info()
    assert info.winnow_version == __version__
    assert (info.instruct.name, info.base.name) == (hosted.config.instruct, hosted.config.base)
    assert (info.instruct.dtype, info.instruct.device, info.instruct.chat_template) == ("float32", "cpu", "lab")
    assert info.instruct.weight_hash != info.base.weight_hash
    assert info.instruct.tokenizer_hash == info.base.tokenizer_hash
    assert info.instruct.template_hash == hosted.chat.template_hash
    assert (info.base_prompt, info.has_shared_tokenizer) == ("same", True)
    assert (info.max_tokens, info.max_completions, info.token_budget) == (128, 16, 100)
    limits = (hosted.config.max_message_bytes, hosted.config.queue.max_tokens)
    assert (info.max_message_bytes, info.max_queued_tokens) == limits


def test_health_answers_for_the_server_and_the_service(channel: grpc.Channel, client: RewardClient) -> None:
    for service in ("", SERVICE_NAME):
        response = HealthStub(channel).Check(HealthCheckRequest(service=service), timeout=30)
        assert response.status == HealthCheckResponse.SERVING
    client.wait_until_ready(30)


def test_reflection_names_the_services(channel: grpc.Channel) -> None:
    services = ProtoReflectionDescriptorDatabase(channel).get_services()
    assert {SERVICE_NAME, "grpc.health.v1.Health"} <= set(services)


def test_a_taken_address_is_refused_at_once(hosted: Hosted) -> None:
    with pytest.raises(UsageError, match="take another port"):
        check_address_is_free(hosted.address)
    with pytest.raises(UsageError, match="should be HOST:PORT"):
        check_address_is_free("localhost")
