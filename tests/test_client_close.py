"""Both clients closed while calls are in progress, and the tasks that wait for these calls."""

import asyncio
from collections.abc import Awaitable
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from reward_server.adapters.coalescing import Coalescer
from reward_server.client import AsyncRewardClient, CompletionText, RewardClient
from reward_server.client.retries import CallAttempts, Failure
from tests.both_clients import address_fixture, service_fixture  # noqa: F401
from tests.processes import EVENT_TIMEOUT_S
from tests.scripted_server import MESSAGES, ScriptedService
from winnow.errors import ServerError, UsageError


async def close_in_call(client: AsyncRewardClient, call: Awaitable[object], service: ScriptedService) -> object:
    """Close the client while the server holds the call, and return what the call returns."""
    task = asyncio.ensure_future(call)
    await asyncio.to_thread(service.wait_for_requests, 1)
    await client.close()
    return await asyncio.wait_for(task, EVENT_TIMEOUT_S)


def test_close_ends_an_async_call_with_a_server_error(service: ScriptedService, address: str) -> None:
    async def score() -> None:
        client = AsyncRewardClient(address)
        await close_in_call(client, client.score(MESSAGES, ["abc"]), service)

    service.gate.clear()
    with pytest.raises(ServerError, match="its client was closed"):
        asyncio.run(score())


def test_close_ends_a_blocking_call_with_a_server_error(service: ScriptedService, address: str) -> None:
    service.gate.clear()
    client = RewardClient(address)
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(client.score, MESSAGES, ["abc"])
        service.wait_for_requests(1)
        client.close()
        with pytest.raises(ServerError, match="its client was closed"):
            call.result(EVENT_TIMEOUT_S)


def test_close_ends_the_pause_between_attempts_with_a_usage_error(
    service: ScriptedService, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pause_after = CallAttempts.pause_after

    async def score() -> None:
        is_pausing = asyncio.Event()

        def recorded_pause_after(attempts: CallAttempts, failure: Failure, index: int) -> float:
            is_pausing.set()
            return pause_after(attempts, failure, index)

        monkeypatch.setattr(CallAttempts, "pause_after", recorded_pause_after)
        client = AsyncRewardClient(address)
        task = asyncio.ensure_future(client.score(MESSAGES, ["abc"]))
        await is_pausing.wait()
        await client.close()
        await asyncio.wait_for(task, EVENT_TIMEOUT_S)

    service.fail(grpc.StatusCode.RESOURCE_EXHAUSTED, pushback="50")
    with pytest.raises(UsageError, match="this client is closed"):
        asyncio.run(score())


def test_close_ends_a_coalesced_call_with_a_server_error(service: ScriptedService, address: str) -> None:
    async def score() -> None:
        client = AsyncRewardClient(address)
        coalescer = Coalescer(lambda prompt, completions: client.score(prompt, completions))
        await close_in_call(client, coalescer.score(MESSAGES, CompletionText("abc")), service)

    service.gate.clear()
    with pytest.raises(ServerError, match="its client was closed"):
        asyncio.run(score())


def test_a_cancelled_task_stays_cancelled(service: ScriptedService, address: str) -> None:
    async def score() -> None:
        async with AsyncRewardClient(address) as client:
            task = asyncio.ensure_future(client.score(MESSAGES, ["abc"]))
            await asyncio.to_thread(service.wait_for_requests, 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    service.gate.clear()
    asyncio.run(score())
