"""One at a time, clients in rotation: who is rendered next. Each client's own requests keep their order.

    async with turns.of("a"):   waits until nobody is inside and it is a's turn

A client that sends a thousand requests at once thus holds up another one by one of them, not by a thousand. Belongs to
one event loop.
"""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class RoundRobinLock:
    """`num` counts the requests that wait or are inside, `num_of` each client's."""

    def __init__(self) -> None:
        self.num = 0
        self.num_of: Counter[str] = Counter()
        self._lines: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self._is_taken = False

    @asynccontextmanager
    async def of(self, client: str) -> AsyncIterator[None]:
        """Be inside, alone, when it is this client's turn. Who is cancelled while waiting loses the place."""
        self.num += 1
        self.num_of[client] += 1
        try:
            await self._enter(client)
            try:
                yield
            finally:
                self._pass_on()
        finally:
            self.num -= 1
            self.num_of[client] -= 1
            if not self.num_of[client]:
                del self.num_of[client]

    async def _enter(self, client: str) -> None:
        if not self._is_taken:
            self._is_taken = True
            return
        turn = asyncio.get_running_loop().create_future()
        self._lines.setdefault(client, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # its turn came in the same step
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        """The turn of the next client in the rotation that still waits."""
        while self._lines:
            client, line = self._lines.popitem(last=False)
            turn = line.popleft()
            if line:
                self._lines[client] = line
            if not turn.done():
                turn.set_result(None)
                return
        self._is_taken = False
