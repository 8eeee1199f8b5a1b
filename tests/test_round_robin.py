"""RoundRobinLock: clients in rotation, the order of each client's requests, and requests that are cancelled."""

import asyncio
from collections.abc import Sequence

from reward_server.scheduling.round_robin import RoundRobinLock


def order_of_holders(
    names: Sequence[str], cancelled: Sequence[int] = (), cancelled_late: Sequence[int] = ()
) -> list[str]:
    """Return the names of requests in the order in which they held the lock; the first letter is the client.

    All requests come while the lock is held. `cancelled` are the indices of requests that are cancelled while they
    wait, `cancelled_late` those that are cancelled in the step of the event loop that grants them the lock.
    """
    lock = RoundRobinLock()
    holders: list[str] = []

    async def hold_once(name: str) -> None:
        async with lock.hold(name[0]):
            holders.append(name)
            await asyncio.sleep(0)

    async def hold_all() -> None:
        async with lock.hold("first"):
            tasks = [asyncio.ensure_future(hold_once(name)) for name in names]
            await asyncio.sleep(0)
            assert lock.num_requests == sum(lock.num_requests_of.values()) == 1 + len(names)
            for index in cancelled:
                tasks[index].cancel()
            await asyncio.sleep(0)
        for index in cancelled_late:
            tasks[index].cancel()
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
        assert lock.num_requests == 0
        assert dict(lock.num_requests_of) == {}
        await asyncio.wait_for(hold_once("z-last"), 10)  # the lock is free again

    asyncio.run(hold_all())
    assert holders.pop() == "z-last"
    return holders


def test_clients_alternate_and_each_keeps_its_order_as_in_the_modules_example() -> None:
    names = ["a1", "a2", "a3", "a4", "b1", "b2", "c1"]
    assert order_of_holders(names) == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]


def test_a_cancelled_request_loses_its_place() -> None:
    assert order_of_holders(["a1", "a2", "b1", "c1"], cancelled=[0, 3]) == ["b1", "a2"]


def test_a_request_that_is_cancelled_as_it_gets_the_lock_passes_it_on() -> None:
    assert order_of_holders(["a1", "a2", "b1"], cancelled_late=[0]) == ["b1", "a2"]
    assert order_of_holders(["a1"], cancelled_late=[0]) == []


def test_a_holder_that_fails_releases_the_lock() -> None:
    lock = RoundRobinLock()

    async def fail() -> None:
        async with lock.hold("a"):
            raise ValueError

    async def hold_after_failure() -> bool:
        await asyncio.gather(fail(), return_exceptions=True)
        async with lock.hold("a"):
            return True

    assert asyncio.run(asyncio.wait_for(hold_after_failure(), 10))
    assert lock.num_requests == 0
