"""The client: light to import, clear when there is no server, patient with one that comes back."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from reward_server.client import Group, RewardClient
from reward_server.pb import reward_pb2 as pb
from reward_server.pb.reward_pb2_grpc import RewardServiceServicer, add_RewardServiceServicer_to_server
from winnow.errors import ServerError, UsageError

ROOT = Path(__file__).parent.parent
MESSAGES = [{"role": "user", "content": "What is 2 + 3?"}]


class FakeService(RewardServiceServicer):
    """Answers each completion with its length; fails when told to."""

    def __init__(self) -> None:
        self.num_failures = 0
        self.num_answers_per_stream = 1000
        self.code = grpc.StatusCode.UNAVAILABLE
        self.delay_s = 0.0
        self.num_seen = 0

    def Score(self, request: pb.ScoreRequest, context: Any) -> pb.ScoreResponse:
        self.num_seen += 1
        time.sleep(self.delay_s)
        if self.num_failures > 0:
            self.num_failures -= 1
            context.abort(self.code, "told to fail")
        scores = [
            pb.CompletionScore(status=pb.STATUS_OK, reward=float(len(one.text.text)), num_tokens=1)
            for one in request.completions
        ]
        return pb.ScoreResponse(request_id=request.request_id, completions=scores)

    def ScoreStream(self, request_iterator: Iterator[pb.ScoreRequest], context: Any) -> Iterator[pb.ScoreResponse]:
        for index, request in enumerate(request_iterator):
            if index == self.num_answers_per_stream:
                context.abort(grpc.StatusCode.UNAVAILABLE, "told to break off")
            yield self.Score(request, context)


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def client(service: FakeService) -> Iterator[RewardClient]:
    server = grpc.server(ThreadPoolExecutor(4))
    add_RewardServiceServicer_to_server(service, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with RewardClient(f"127.0.0.1:{port}", timeout_s=10) as connected:
        yield connected
    server.stop(0).wait()


def groups(number: int) -> Iterator[Group]:
    return (Group(MESSAGES, ["x" * index]) for index in range(number))


def lengths(answers: Iterator[Any]) -> list[float]:
    return [scored[0].reward for scored in answers]


def test_importing_the_client_needs_the_base_install_only() -> None:
    absent = [
        "torch",
        "transformers",
        "safetensors",
        "pyarrow",
        "grpc_reflection",
        "jinja2",
        "tokenizers",
        "grpc_tools",
    ]
    program = f"import sys; sys.modules.update(dict.fromkeys({absent})); import reward_server.client"
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, cwd=ROOT)


def test_no_server_is_one_line_that_says_what_to_do() -> None:
    with (
        RewardClient("127.0.0.1:1", timeout_s=2) as client,
        pytest.raises(ServerError, match=r"no reward server answers at 127\.0\.0\.1:1 .*start one with `winnow serve"),
    ):
        client.score(MESSAGES, ["yes"])


def test_no_server_fails_a_stream_and_the_wait_too() -> None:
    with RewardClient("127.0.0.1:1", timeout_s=1) as client:
        with pytest.raises(ServerError, match="no reward server answers"):
            list(client.score_many(groups(3)))
        start = time.monotonic()
        with pytest.raises(ServerError, match="no reward server answers"):
            client.wait_until_ready(0.5)
        assert time.monotonic() - start < 5


def test_a_server_that_comes_back_is_tried_again(client: RewardClient, service: FakeService) -> None:
    service.num_failures = 2
    assert client.score(MESSAGES, ["abc"])[0].reward == 3.0
    assert service.num_seen == 3


def test_a_server_that_stays_away_is_given_up(client: RewardClient, service: FakeService) -> None:
    service.num_failures = 1000
    with pytest.raises(ServerError, match="told to fail"):
        client.score(MESSAGES, ["abc"])
    assert service.num_seen == 5


def test_other_errors_are_not_tried_again(client: RewardClient, service: FakeService) -> None:
    service.num_failures, service.code = 1, grpc.StatusCode.INTERNAL
    with pytest.raises(ServerError, match="INTERNAL: told to fail"):
        client.score(MESSAGES, ["abc"])
    service.num_failures, service.code = 1, grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(UsageError, match="malformed: told to fail"):
        client.score(MESSAGES, ["abc"])
    assert service.num_seen == 2


def test_a_server_that_does_not_answer_in_time_is_named(service: FakeService, client: RewardClient) -> None:
    service.delay_s = 0.6
    with RewardClient(client.address, timeout_s=0.2) as hurried:
        with pytest.raises(ServerError, match=r"no answer within 0\.2 s; raise timeout_s"):
            hurried.score(MESSAGES, ["abc"])
        with pytest.raises(ServerError, match=r"no answer within 0\.2 s"):
            list(hurried.score_many(groups(2)))


@pytest.mark.parametrize("concurrency", [1, 3, 100])
def test_a_stream_that_breaks_off_loses_nothing(client: RewardClient, service: FakeService, concurrency: int) -> None:
    service.num_answers_per_stream = 2
    assert lengths(client.score_many(groups(7), concurrency=concurrency)) == [0, 1, 2, 3, 4, 5, 6]


def test_groups_are_read_no_further_ahead_than_allowed(client: RewardClient) -> None:
    read: list[int] = []

    def counted() -> Iterator[Group]:
        for index, group in enumerate(groups(50)):
            read.append(index)
            yield group

    for number, _ in enumerate(client.score_many(counted(), concurrency=4)):
        assert len(read) <= number + 4
    assert len(read) == 50


def test_an_error_of_the_groups_reaches_the_caller(client: RewardClient) -> None:
    def broken() -> Iterator[Group]:
        yield from groups(2)
        raise KeyError("messages")

    with pytest.raises(KeyError):
        list(client.score_many(broken(), concurrency=1))


def test_a_stream_that_is_left_early_ends(client: RewardClient) -> None:
    before = threading.active_count()
    answers = client.score_many(groups(1000), concurrency=2)
    assert lengths(iter([next(answers), next(answers)])) == [0, 1]
    answers.close()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 10
    while threading.active_count() > before + 4 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() <= before + 4


def test_no_groups_are_no_answers(client: RewardClient) -> None:
    assert list(client.score_many(iter([]))) == []


def test_what_is_no_group_is_refused_before_it_is_sent(client: RewardClient) -> None:
    with pytest.raises(UsageError, match="a list of completions, not one text"):
        client.score(MESSAGES, "abc")
    with pytest.raises(UsageError, match="needs role and content"):
        client.score([{"role": "user"}], ["abc"])
    with pytest.raises(UsageError, match="concurrency 0"):
        list(client.score_many(groups(2), concurrency=0))


def test_an_unknown_option_is_named_with_the_known_ones(client: RewardClient) -> None:
    with pytest.raises(UsageError, match="normalization 'avg' is none of sum, mean"):
        client.score(MESSAGES, ["abc"], normalization="avg")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="none of include, exclude, if_finished"):
        client.score(MESSAGES, ["abc"], eos_policy="always")  # type: ignore[arg-type]
