"""Both clients closed while calls are in progress, and the tasks that wait for them."""

import asyncio
import time
from collections.abc import Awaitable
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from reward_server.adapters.coalescing import Coalescer
from reward_server.client import AsyncRewardClient, CompletionText, RewardClient
from tests.both_clients import address_fixture, service_fixture  # noqa: F401
from tests.scripted_server import MESSAGES, ScriptedService
from winnow.errors import ServerError, UsageError

PAUSE_S = 0.3


async def closed_meanwhile(client: AsyncRewardClient, call: Awaitable[object]) -> object:
    """What becomes of a call whose client is closed."""
    task = asyncio.ensure_future(call)
    await asyncio.sleep(PAUSE_S)
    await client.close()
    return await asyncio.wait_for(task, 10)


async def closed_in_a_call(address: str) -> object:
    client = AsyncRewardClient(address)
    return await closed_meanwhile(client, client.score(MESSAGES, ["abc"]))


async def closed_before_a_coalesced_answer(address: str) -> object:
    client = AsyncRewardClient(address)
    coalescer = Coalescer(lambda prompt, texts: client.score(prompt, texts))
    return await closed_meanwhile(client, coalescer.score(MESSAGES, CompletionText("abc")))


def test_a_call_in_progress_ends_with_an_error_of_ours(service: ScriptedService, address: str) -> None:
    service.is_open.clear()
    with pytest.raises(ServerError, match="its client was closed"):
        asyncio.run(closed_in_a_call(address))
    service.is_open.set()


def test_a_call_of_the_synchronous_client_ends_alike(service: ScriptedService, address: str) -> None:
    service.is_open.clear()
    client = RewardClient(address)
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(client.score, MESSAGES, ["abc"])
        time.sleep(PAUSE_S)
        client.close()
        with pytest.raises(ServerError, match="its client was closed"):
            call.result(10)
    service.is_open.set()


def test_a_pause_between_attempts_ends_with_an_error_of_ours(service: ScriptedService, address: str) -> None:
    service.fail(grpc.StatusCode.RESOURCE_EXHAUSTED, pushback="1000")
    with pytest.raises(UsageError, match="this client is closed"):
        asyncio.run(closed_in_a_call(address))


def test_a_coalesced_answer_ends_too(service: ScriptedService, address: str) -> None:
    service.is_open.clear()
    with pytest.raises(ServerError, match="its client was closed"):
        asyncio.run(closed_before_a_coalesced_answer(address))
    service.is_open.set()


def test_a_call_that_its_own_task_cancels_is_cancelled(service: ScriptedService, address: str) -> None:
    async def cancelled() -> None:
        async with AsyncRewardClient(address) as client:
            task = asyncio.ensure_future(client.score(MESSAGES, ["abc"]))
            await asyncio.sleep(PAUSE_S)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    service.is_open.clear()
    asyncio.run(cancelled())
    service.is_open.set()
