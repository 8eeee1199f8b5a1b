"""Fixtures that ask the synchronous and the asynchronous client the same questions.

A test module imports `client_fixture`, for pytest to find, and its tests ask for `client`: no argument hides an import.
"""

import asyncio
import inspect
from collections.abc import Iterator
from typing import Any

import pytest

from reward_server.client import AsyncRewardClient, RewardClient
from tests.scripted_server import QUICK, ScriptedService, scripted_server


class Awaited:
    """The asynchronous client with the synchronous one's surface, so that one test asks both."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        self._client = AsyncRewardClient(*arguments, **keywords)
        self._runner = asyncio.Runner()

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._client, name)
        if not inspect.iscoroutinefunction(value):
            return value
        return lambda *arguments, **keywords: self._runner.run(value(*arguments, **keywords))

    def __repr__(self) -> str:
        return repr(self._client)

    def score_many(self, *arguments: Any, **keywords: Any) -> Iterator[Any]:
        answers = self._client.score_many(*arguments, **keywords)
        try:
            while (scored := self._runner.run(_next(answers))) is not None:
                yield scored
        finally:
            self._runner.run(answers.aclose())  # type: ignore[attr-defined]

    def __enter__(self) -> "Awaited":
        return self

    def __exit__(self, *error: object) -> None:
        self._runner.run(self._client.close())
        self._runner.close()


async def _next(answers: Any) -> Any:
    return await anext(answers, None)


@pytest.fixture(name="connect", params=[RewardClient, Awaited], ids=["sync", "async"])
def connect_fixture(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(name="service")
def service_fixture() -> ScriptedService:
    return ScriptedService()


@pytest.fixture(name="address")
def address_fixture(service: ScriptedService) -> Iterator[str]:
    with scripted_server(service) as address:
        yield address


@pytest.fixture(name="client")
def client_fixture(connect: Any, address: str) -> Iterator[Any]:
    with connect(address, timeout_s=10, retries=QUICK) as connected:
        yield connected
