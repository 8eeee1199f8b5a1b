"""Both clients' score_many: in order, within the read-ahead, with every server busy, and ended when it is left."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from reward_server.client import AsyncRewardClient, Group
from reward_server.pb import reward_pb2 as pb
from tests.both_clients import address_fixture, client_fixture, connect_fixture, service_fixture  # noqa: F401
from tests.processes import wait_until
from tests.scripted_server import THREAD_NAME, ScriptedService, first_rewards, groups, scripted_server
from winnow.errors import UsageError


class SlowFirstGroupService(ScriptedService):
    """Answers the first group after `num_others` further requests have arrived, and the others at once."""

    def __init__(self, num_others: int) -> None:
        super().__init__()
        self.num_others = num_others

    def Score(self, request: pb.ScoreRequest, context: Any) -> pb.ScoreResponse:
        if request.completions[0].text.text == "x":
            self.wait_for_requests(self.num_others)
        return super().Score(request, context)


class TwoFreeGroupsService(ScriptedService):
    """Answers the first two groups while the gate is closed."""

    def is_free(self, request: pb.ScoreRequest) -> bool:
        return len(request.completions[0].text.text) <= 2


def test_score_many_reads_groups_no_further_ahead_than_allowed(client: Any) -> None:
    read: list[int] = []

    def counted() -> Iterator[Group]:
        for index, group in enumerate(groups(200)):
            read.append(index)
            yield group

    for num_yielded, _ in enumerate(client.score_many(counted(), concurrency=4)):
        assert len(read) <= num_yielded + 16
    assert len(read) == 200


def test_score_many_keeps_servers_busy_while_one_group_is_slow(connect: Any) -> None:
    # With concurrency 4, 16 groups are read ahead: 15 of them get their answers while the first one waits for them.
    service = SlowFirstGroupService(num_others=15)
    with scripted_server(service) as address, connect(address, timeout_s=120) as client:
        assert first_rewards(client.score_many(groups(40), concurrency=4)) == list(range(1, 41))


def test_score_many_reports_progress_in_order(client: Any) -> None:
    done: list[int] = []
    assert len(list(client.score_many(groups(7), concurrency=3, on_progress=done.append))) == 7
    assert done == [1, 2, 3, 4, 5, 6, 7]


def test_score_many_passes_on_an_error_of_the_groups(client: Any) -> None:
    def broken() -> Iterator[Group]:
        yield from groups(2)
        raise KeyError("messages")

    with pytest.raises(KeyError):
        list(client.score_many(broken(), concurrency=1))


def test_score_many_yields_the_groups_before_a_malformed_one(client: Any) -> None:
    results = client.score_many([*groups(3), Group([{"role": "user"}], ["a"])], concurrency=2)
    assert [next(results)[0].reward for _ in range(3)] == [1, 2, 3]
    with pytest.raises(UsageError, match="needs role and content"):
        next(results)


def test_score_many_that_is_left_early_cancels_its_calls_and_threads(connect: Any) -> None:
    service = TwoFreeGroupsService()
    service.gate.clear()
    with scripted_server(service) as address, connect(address, timeout_s=120) as client:
        client.server_info()  # starts the threads that gRPC keeps
        before = set(threading.enumerate())
        results = client.score_many(groups(1000), concurrency=2)
        assert first_rewards(iter([next(results), next(results)])) == [1, 2]
        service.wait_for_requests(3)
        results.close()
        wait_until(lambda: service.num_ended == service.num_seen, "the end of the calls in progress")
        # The gate is still closed: the calls in progress were cancelled, not answered.
        assert service.num_answered == 2
        assert service.num_seen < 20

        def has_no_new_threads() -> bool:
            started = set(threading.enumerate()) - before
            return all(thread.name.startswith(THREAD_NAME) for thread in started)

        wait_until(has_no_new_threads, "the end of the client's threads")


def test_score_many_takes_an_async_iterator(address: str) -> None:
    async def produced() -> Any:
        for group in groups(5):
            await asyncio.sleep(0)
            yield group

    async def score() -> list[float | None]:
        async with AsyncRewardClient(address) as client:
            return [scored[0].reward async for scored in client.score_many(produced())]

    assert asyncio.run(score()) == [1, 2, 3, 4, 5]
