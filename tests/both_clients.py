"""Fixtures with which one test calls the blocking and the asynchronous client.

A test module imports `client_fixture`, so that pytest finds it, and its tests take `client`: the names differ, so that
no argument hides an import.
"""

import asyncio
import inspect
from collections.abc import Iterator
from typing import Any

import pytest

from reward_server.client import AsyncRewardClient, RewardClient
from tests.scripted_server import QUICK, ScriptedService, scripted_server


class BlockingAsyncClient:
    """The asynchronous client behind the blocking client's methods."""

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
        results = self._client.score_many(*arguments, **keywords)
        try:
            while True:
                scored = self._runner.run(_next(results))
                if scored is None:
                    return
                yield scored
        finally:
            self._runner.run(results.aclose())  # type: ignore[attr-defined]

    def __enter__(self) -> "BlockingAsyncClient":
        return self

    def __exit__(self, *error: object) -> None:
        self._runner.run(self._client.close())
        self._runner.close()


async def _next(results: Any) -> Any:
    return await anext(results, None)


@pytest.fixture(name="connect", params=[RewardClient, BlockingAsyncClient], ids=["sync", "async"])
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
