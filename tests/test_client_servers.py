"""Both clients while servers are away, full, slow or several: retries, push-back, least-connections balancing."""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import grpc
import pytest

from tests.both_clients import address_fixture, client_fixture, connect_fixture, service_fixture  # noqa: F401
from tests.processes import wait_until
from tests.scripted_server import (
    MESSAGES,
    NO_SERVER,
    QUICK,
    ScriptedService,
    first_rewards,
    groups,
    scripted_server,
)
from winnow.errors import ServerBusyError, ServerError, UsageError

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


def test_no_server_is_an_error_of_one_line_with_the_remedy(connect: Any) -> None:
    with (
        connect(NO_SERVER, timeout_s=2, retries=QUICK) as client,
        pytest.raises(ServerError, match=r"no reward server answers at 127\.0\.0\.1:1 .*start one with `winnow serve"),
    ):
        client.score(MESSAGES, ["yes"])


def test_no_server_fails_score_many_and_wait_until_ready(connect: Any) -> None:
    with connect(NO_SERVER, timeout_s=600, retries=QUICK) as client:
        with pytest.raises(ServerError, match="no reward server answers"):
            list(client.score_many(groups(3)))
        start = time.monotonic()
        with pytest.raises(ServerError, match="no reward server answers"):
            client.wait_until_ready(0.5)
        # The timeout of the call counts, not that of the client. A busy machine may take some seconds.
        assert time.monotonic() - start < 120


def test_a_call_is_retried_when_the_server_is_away(client: Any, service: ScriptedService) -> None:
    service.fail(UNAVAILABLE, times=2)
    assert client.score(MESSAGES, ["abc"])[0].reward == 3.0
    assert service.num_seen == 3


def test_a_call_is_retried_when_the_stopping_server_cancels_it(client: Any, service: ScriptedService) -> None:
    service.fail(grpc.StatusCode.CANCELLED)
    assert client.score(MESSAGES, ["abc"])[0].reward == 3.0


def test_a_call_fails_after_max_attempts(client: Any, service: ScriptedService) -> None:
    service.fail(UNAVAILABLE, times=1000)
    with pytest.raises(ServerError, match="told to fail"):
        client.score(MESSAGES, ["abc"])
    assert service.num_seen == 5


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        (grpc.StatusCode.INTERNAL, ServerError, "INTERNAL: told to fail"),
        (grpc.StatusCode.INVALID_ARGUMENT, UsageError, "malformed: told to fail"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, ServerError, "did not respond within"),
        (grpc.StatusCode.UNAUTHENTICATED, ServerError, "give its token= or --token-file"),
        (EXHAUSTED, ServerError, "RESOURCE_EXHAUSTED: told to fail"),
    ],
)
def test_other_errors_are_not_retried(
    client: Any, service: ScriptedService, code: grpc.StatusCode, kind: type[Exception], message: str
) -> None:
    service.fail(code)
    with pytest.raises(kind, match=message):
        client.score(MESSAGES, ["abc"])
    assert service.num_seen == 1


def test_a_full_server_is_called_again_after_its_push_back(client: Any, service: ScriptedService) -> None:
    service.fail(EXHAUSTED, times=7, pushback="30")
    start = time.monotonic()
    assert client.score(MESSAGES, ["abc"])[0].reward == 3.0
    assert time.monotonic() - start >= 7 * 0.03
    assert service.num_seen == 8


@pytest.mark.parametrize("pushback", ["-1", "soon"])
@pytest.mark.parametrize("code", [EXHAUSTED, UNAVAILABLE])
def test_a_negative_or_malformed_push_back_forbids_retries(
    client: Any, service: ScriptedService, code: grpc.StatusCode, pushback: str
) -> None:
    service.fail(code, pushback=pushback)
    with pytest.raises(ServerError):
        client.score(MESSAGES, ["abc"])
    assert service.num_seen == 1


def test_a_push_back_beyond_the_deadline_is_a_server_busy_error(client: Any, service: ScriptedService) -> None:
    service.fail(EXHAUSTED, pushback="60000")
    with pytest.raises(ServerBusyError, match="is full") as caught:
        client.score(MESSAGES, ["abc"])
    assert caught.value.retry_s == 60.0


def test_a_server_that_exceeds_the_deadline_is_named(connect: Any, service: ScriptedService, address: str) -> None:
    service.gate.clear()
    with connect(address, timeout_s=0.2) as client:
        with pytest.raises(ServerError, match=r"did not respond within 0\.2 s; raise timeout_s"):
            client.score(MESSAGES, ["abc"])
        with pytest.raises(ServerError, match=r"did not respond within 0\.2 s"):
            list(client.score_many(groups(2)))


def test_dead_servers_fail_no_call_while_one_lives(connect: Any, service: ScriptedService, address: str) -> None:
    with connect([NO_SERVER, address, "127.0.0.1:2"], timeout_s=10) as client:
        assert [client.score(MESSAGES, ["abc"])[0].reward for _ in range(5)] == [3.0] * 5
        assert first_rewards(client.score_many(groups(20))) == list(range(1, 21))
        client.wait_until_ready(5)
    assert service.num_seen == 25


def test_a_dead_server_next_to_a_full_one_does_not_end_the_attempts(
    connect: Any, service: ScriptedService, address: str
) -> None:
    service.fail(EXHAUSTED, pushback="2000")
    with connect([address, NO_SERVER], timeout_s=60, retries=QUICK) as client:
        client.server_info()
        assert client.score(MESSAGES, ["abc"])[0].reward == 3.0


def test_load_balancer_gives_a_slow_server_fewer_groups_and_keeps_the_order(connect: Any) -> None:
    slow = ScriptedService()
    slow.gate.clear()
    quick = [ScriptedService(), ScriptedService()]

    def open_gate_after_20_groups_of_the_others() -> tuple[int, int]:
        """Return the number of requests of the slow server, and of the quick one with fewer, at that time."""
        # With concurrency 6, 24 groups are read ahead.
        wait_until(lambda: quick[0].num_seen + quick[1].num_seen >= 20, "20 requests to the quick servers")
        num_slow = slow.num_seen
        slow.gate.set()
        return num_slow, min(service.num_seen for service in quick)

    with ExitStack() as stack:
        addresses = [stack.enter_context(scripted_server(service)) for service in (slow, *quick)]
        threads = stack.enter_context(ThreadPoolExecutor(1))
        client = stack.enter_context(connect(",".join(addresses), timeout_s=60))
        opened = threads.submit(open_gate_after_20_groups_of_the_others)
        assert first_rewards(client.score_many(groups(60), concurrency=6)) == list(range(1, 61))
        num_slow, num_quick = opened.result()
    # Of 6 calls in progress, a server that answers none gets 2, its share.
    assert num_slow <= 2 < num_quick
    services = [slow, *quick]
    assert sum(service.num_seen for service in services) == 60
    assert all(service.num_seen >= 3 for service in services)


def test_a_server_that_dies_in_the_middle_loses_no_group(connect: Any, service: ScriptedService, address: str) -> None:
    dying = ScriptedService()
    with ExitStack() as stack:
        dying_address = stack.enter_context(scripted_server(dying))
        with connect([dying_address, address], timeout_s=10, retries=QUICK) as client:
            results = client.score_many(groups(200), concurrency=4)
            first = first_rewards(iter([next(results) for _ in range(10)]))
            stack.close()
            assert first + first_rewards(results) == list(range(1, 201))
    assert 0 < dying.num_seen < 200


def test_a_full_server_leaves_its_work_to_another_one(connect: Any, service: ScriptedService, address: str) -> None:
    full = ScriptedService()
    full.fail(EXHAUSTED, times=1000, pushback="60000")
    with scripted_server(full) as full_address, connect([full_address, address], timeout_s=10) as client:
        assert first_rewards(client.score_many(groups(50), concurrency=1)) == list(range(1, 51))
    assert full.num_seen == 1


def test_servers_with_different_models_are_refused_within_a_group(
    connect: Any, service: ScriptedService, address: str
) -> None:
    second_service = ScriptedService()
    second_service.weight_hash = "sha256:other"
    service.max_completions = 1
    second_service.max_completions = 1
    with (
        scripted_server(second_service) as second_address,
        connect([second_address, address], timeout_s=10) as client,
        pytest.raises(ServerError, match="different definitions, so they do not compare"),
    ):
        client.score(MESSAGES, ["a", "b", "c", "d"])
