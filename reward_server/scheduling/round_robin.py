"""A fair lock: one holder at a time, clients in rotation, and the requests of each client in their order.

    async with lock.hold("a"):   waits until nobody holds the lock and client a is next in rotation

A client that sends a thousand requests at once delays another client by one request, not by a thousand. Example: the
requests a1 a2 a3 a4 b1 b2 c1 come in this order while the lock is held. They get it in the order a1 b1 c1 a2 b2 a3 a4.

A lock belongs to one event loop.
"""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class RoundRobinLock:
    """A lock that clients get in rotation.

    `num_requests` counts the requests that hold the lock or wait for it, `num_requests_of` does so for each client.
    """

    def __init__(self) -> None:
        self.num_requests = 0
        self.num_requests_of: Counter[str] = Counter()
        # The order of the rotation; a client has an entry as long as it has waiting requests.
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self._is_held = False

    @asynccontextmanager
    async def hold(self, client: str) -> AsyncIterator[None]:
        """Hold the lock for the time of a block. A request that is cancelled while it waits loses its place."""
        self.num_requests += 1
        self.num_requests_of[client] += 1
        try:
            await self._acquire(client)
            try:
                yield
            finally:
                self._release()
        finally:
            self.num_requests -= 1
            self.num_requests_of[client] -= 1
            if not self.num_requests_of[client]:
                del self.num_requests_of[client]

    async def _acquire(self, client: str) -> None:
        if not self._is_held:
            self._is_held = True
            return
        granted = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(granted)
        try:
            await granted
        except asyncio.CancelledError:
            # The lock may have been granted in the same step of the event loop: then pass it on.
            if not granted.cancelled():
                self._release()
            raise

    def _release(self) -> None:
        """Grant the lock to the next client in rotation that still waits; else it is free."""
        while self._waiting:
            client, requests = self._waiting.popitem(last=False)
            granted = requests.popleft()
            if requests:
                self._waiting[client] = requests
            if not granted.done():
                granted.set_result(None)
                return
        self._is_held = False
