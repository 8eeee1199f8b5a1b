"""A stream of requests -> their answers in order, several of them in progress at once."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from typing import Generic, TypeVar

Request = TypeVar("Request")
Answer = TypeVar("Answer")


class StoppingError(Exception):
    """The stream was stopped: what comes after the answers that were given is unanswered."""


class InOrder(Generic[Request, Answer]):
    """Reads at most `read_ahead` requests beyond those whose answers were taken; then it lets the sender wait."""

    def __init__(
        self, requests: AsyncIterable[Request], answer: Callable[[Request], Awaitable[Answer]], read_ahead: int
    ) -> None:
        self._requests = requests
        self._answer = answer
        self._room = asyncio.Semaphore(read_ahead)
        self._line: asyncio.Queue[asyncio.Future[Answer] | BaseException | None] = asyncio.Queue()
        self._reader = asyncio.ensure_future(self._read())
        self._reader.add_done_callback(self._end)

    async def answers(self) -> AsyncIterator[Answer]:
        """One answer for each request. Raises what `answer` raises, and StoppingError."""
        while (pending := await self._line.get()) is not None:
            if isinstance(pending, BaseException):
                raise pending
            try:
                answer = await pending
            finally:
                pending.cancel()
            self._room.release()
            yield answer

    def stop(self) -> None:
        """Read no more; `answers` raises StoppingError after what was read."""
        self._reader.cancel()

    def close(self) -> None:
        """Give up what is in progress."""
        self._reader.cancel()
        while not self._line.empty():
            if isinstance(pending := self._line.get_nowait(), asyncio.Future):
                pending.cancel()

    async def _read(self) -> None:
        requests = aiter(self._requests)
        while True:
            await self._room.acquire()
            try:
                request = await anext(requests)
            except StopAsyncIteration:
                return
            pending = asyncio.ensure_future(self._answer(request))
            pending.add_done_callback(_look_at)
            self._line.put_nowait(pending)

    def _end(self, reader: "asyncio.Task[None]") -> None:
        """What comes after the last answer: nothing, StoppingError, or why the connection broke."""
        self._line.put_nowait(StoppingError() if reader.cancelled() else reader.exception())


def _look_at(done: "asyncio.Future[Answer]") -> None:
    """An error that nobody waits for any more is no news for the log."""
    if not done.cancelled():
        done.exception()
