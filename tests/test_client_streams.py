"""Both clients' score_many: in order, no further ahead than allowed, no server idle, and ended when it is left."""

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from reward_server.client import AsyncRewardClient, Group
from tests.both_clients import address_fixture, client_fixture, connect_fixture, service_fixture  # noqa: F401
from tests.scripted_server import ScriptedService, groups, rewards
from winnow.errors import UsageError


def test_groups_are_read_no_further_ahead_than_allowed(client: Any) -> None:
    read: list[int] = []

    def counted() -> Iterator[Group]:
        for index, group in enumerate(groups(200)):
            read.append(index)
            yield group

    for number, _ in enumerate(client.score_many(counted(), concurrency=4)):
        assert len(read) <= number + 16
    assert len(read) == 200


def test_one_slow_group_stops_no_server(client: Any, service: ScriptedService) -> None:
    service.is_open.clear()
    answers = client.score_many(groups(40), concurrency=4)
    opened = threading.Timer(0.2, service.is_open.set)
    opened.start()
    assert rewards(answers) == list(range(1, 41))
    opened.join()


def test_progress_is_told_in_order(client: Any) -> None:
    done: list[int] = []
    assert len(list(client.score_many(groups(7), concurrency=3, on_progress=done.append))) == 7
    assert done == [1, 2, 3, 4, 5, 6, 7]


def test_an_error_of_the_groups_reaches_the_caller(client: Any) -> None:
    def broken() -> Iterator[Group]:
        yield from groups(2)
        raise KeyError("messages")

    with pytest.raises(KeyError):
        list(client.score_many(broken(), concurrency=1))


def test_groups_before_a_malformed_one_are_answered(client: Any) -> None:
    answers = client.score_many([*groups(3), Group([{"role": "user"}], ["a"])], concurrency=2)
    assert [next(answers)[0].reward for _ in range(3)] == [1, 2, 3]
    with pytest.raises(UsageError, match="needs role and content"):
        next(answers)


def test_a_stream_that_is_left_early_ends(client: Any, service: ScriptedService) -> None:
    before = threading.active_count()
    answers = client.score_many(groups(1000), concurrency=2)
    assert rewards(iter([next(answers), next(answers)])) == [1, 2]
    service.is_open.clear()
    start = time.monotonic()
    answers.close()
    assert time.monotonic() - start < 5
    assert service.num_seen < 20
    deadline = time.monotonic() + 10
    while any(one.name.startswith("score-many") for one in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(one.name.startswith("score-many") for one in threading.enumerate())
    assert threading.active_count() <= before + 32  # the test server's own workers


def test_groups_may_come_from_an_async_iterator(address: str) -> None:
    async def produced() -> Any:
        for group in groups(5):
            await asyncio.sleep(0)
            yield group

    async def ask() -> list[float | None]:
        async with AsyncRewardClient(address) as client:
            return [scored[0].reward async for scored in client.score_many(produced())]

    assert asyncio.run(ask()) == [1, 2, 3, 4, 5]
