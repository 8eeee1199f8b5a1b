"""Both clients where servers are away, full, slow or several: retries, push-back, shared work."""

import time
from contextlib import ExitStack
from typing import Any

import grpc
import pytest

from tests.both_clients import address_fixture, client_fixture, connect_fixture, service_fixture  # noqa: F401
from tests.scripted_server import MESSAGES, QUICK, ScriptedService, groups, rewards, scripted_server
from winnow.errors import ServerBusyError, ServerError, UsageError

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


def test_no_server_is_one_line_that_says_what_to_do(connect: Any) -> None:
    with (
        connect("127.0.0.1:1", timeout_s=2, retries=QUICK) as client,
        pytest.raises(ServerError, match=r"no reward server answers at 127\.0\.0\.1:1 .*start one with `winnow serve"),
    ):
        client.score(MESSAGES, ["yes"])


def test_no_server_fails_a_stream_and_the_wait_too(connect: Any) -> None:
    with connect("127.0.0.1:1", timeout_s=20, retries=QUICK) as client:
        with pytest.raises(ServerError, match="no reward server answers"):
            list(client.score_many(groups(3)))
        start = time.monotonic()
        with pytest.raises(ServerError, match="no reward server answers"):
            client.wait_until_ready(0.5)
        assert time.monotonic() - start < 5


def test_a_server_that_comes_back_is_tried_again(client: Any, service: ScriptedService) -> None:
    service.fail(UNAVAILABLE, times=2)
    assert client.score(MESSAGES, ["abc"])[0].reward == 3.0
    assert service.num_seen == 3


def test_a_call_that_the_server_drops_as_it_stops_is_tried_again(client: Any, service: ScriptedService) -> None:
    service.fail(grpc.StatusCode.CANCELLED)
    assert client.score(MESSAGES, ["abc"])[0].reward == 3.0


def test_a_server_that_stays_away_is_given_up(client: Any, service: ScriptedService) -> None:
    service.fail(UNAVAILABLE, times=1000)
    with pytest.raises(ServerError, match="told to fail"):
        client.score(MESSAGES, ["abc"])
    assert service.num_seen == 5


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        (grpc.StatusCode.INTERNAL, ServerError, "INTERNAL: told to fail"),
        (grpc.StatusCode.INVALID_ARGUMENT, UsageError, "malformed: told to fail"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, ServerError, "no answer within"),
        (grpc.StatusCode.UNAUTHENTICATED, ServerError, "give its token= or --token-file"),
        (EXHAUSTED, ServerError, "RESOURCE_EXHAUSTED: told to fail"),
    ],
)
def test_other_errors_are_not_tried_again(
    client: Any, service: ScriptedService, code: grpc.StatusCode, kind: type[Exception], message: str
) -> None:
    service.fail(code)
    with pytest.raises(kind, match=message):
        client.score(MESSAGES, ["abc"])
    assert service.num_seen == 1


def test_a_full_server_is_asked_again_when_it_said_so(client: Any, service: ScriptedService) -> None:
    service.fail(EXHAUSTED, times=7, pushback="30")
    start = time.monotonic()
    assert client.score(MESSAGES, ["abc"])[0].reward == 3.0
    assert time.monotonic() - start >= 7 * 0.03
    assert service.num_seen == 8


@pytest.mark.parametrize("pushback", ["-1", "soon"])
@pytest.mark.parametrize("code", [EXHAUSTED, UNAVAILABLE])
def test_a_server_that_wants_no_retry_gets_none(
    client: Any, service: ScriptedService, code: grpc.StatusCode, pushback: str
) -> None:
    service.fail(code, pushback=pushback)
    with pytest.raises(ServerError):
        client.score(MESSAGES, ["abc"])
    assert service.num_seen == 1


def test_a_push_back_beyond_the_deadline_is_an_error_that_says_when_to_return(
    client: Any, service: ScriptedService
) -> None:
    service.fail(EXHAUSTED, pushback="60000")
    with pytest.raises(ServerBusyError, match="is full") as caught:
        client.score(MESSAGES, ["abc"])
    assert caught.value.retry_s == 60.0


def test_a_server_that_does_not_answer_in_time_is_named(connect: Any, service: ScriptedService, address: str) -> None:
    service.is_open.clear()
    with connect(address, timeout_s=0.2) as hurried:
        with pytest.raises(ServerError, match=r"no answer within 0\.2 s; raise timeout_s"):
            hurried.score(MESSAGES, ["abc"])
        with pytest.raises(ServerError, match=r"no answer within 0\.2 s"):
            list(hurried.score_many(groups(2)))


def test_a_dead_replica_fails_no_call_while_another_lives(connect: Any, service: ScriptedService, address: str) -> None:
    with connect(["127.0.0.1:1", address, "127.0.0.1:2"], timeout_s=10) as client:
        assert [client.score(MESSAGES, ["abc"])[0].reward for _ in range(5)] == [3.0] * 5
        assert rewards(client.score_many(groups(20))) == list(range(1, 21))
        client.wait_until_ready(5)
    assert service.num_seen == 25


def test_a_dead_replica_beside_a_full_one_is_no_reason_to_give_up(
    connect: Any, service: ScriptedService, address: str
) -> None:
    service.fail(EXHAUSTED, pushback="2000")
    with connect([address, "127.0.0.1:1"], timeout_s=60, retries=QUICK) as client:
        client.server_info()
        assert client.score(MESSAGES, ["abc"])[0].reward == 3.0


def test_several_servers_share_the_groups_and_the_order_stays(connect: Any) -> None:
    services = [ScriptedService() for _ in range(3)]
    services[0].delay_s = 0.05
    with ExitStack() as stack:
        addresses = [stack.enter_context(scripted_server(one)) for one in services]
        with connect(",".join(addresses), timeout_s=10) as client:
            assert rewards(client.score_many(groups(60), concurrency=6)) == list(range(1, 61))
    assert sum(one.num_seen for one in services) == 60
    assert all(one.num_seen >= 3 for one in services)
    assert services[0].num_seen < min(services[1].num_seen, services[2].num_seen)


def test_a_server_that_dies_in_the_middle_loses_nothing(connect: Any, service: ScriptedService, address: str) -> None:
    dying = ScriptedService()
    with ExitStack() as stack:
        other = stack.enter_context(scripted_server(dying))
        with connect([other, address], timeout_s=10, retries=QUICK) as client:
            answers = client.score_many(groups(200), concurrency=4)
            first = rewards(iter([next(answers) for _ in range(10)]))
            stack.close()
            assert first + rewards(answers) == list(range(1, 201))
    assert 0 < dying.num_seen < 200


def test_a_full_server_leaves_its_work_to_the_other(connect: Any, service: ScriptedService, address: str) -> None:
    full = ScriptedService()
    full.fail(EXHAUSTED, times=1000, pushback="60000")
    with scripted_server(full) as other, connect([other, address], timeout_s=10) as client:
        assert rewards(client.score_many(groups(50), concurrency=1)) == list(range(1, 51))
    assert full.num_seen == 1


def test_servers_with_other_models_are_refused_within_a_group(
    connect: Any, service: ScriptedService, address: str
) -> None:
    other_service = ScriptedService()
    other_service.weight_hash = "sha256:other"
    service.max_completions = other_service.max_completions = 1
    with (
        scripted_server(other_service) as other,
        connect([other, address], timeout_s=10) as client,
        pytest.raises(ServerError, match="different definitions, which do not compare"),
    ):
        client.score(MESSAGES, ["a", "b", "c", "d"])
