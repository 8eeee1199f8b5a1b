"""A stream of requests -> a stream of responses in the same order, with several requests in progress at once.

Example: `read_ahead` is 3, and the caller has taken no response. Requests 0, 1 and 2 are read and in progress; request
3 is not read, so that gRPC's flow control makes the sender wait. When the caller takes response 0, request 3 is read.
"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from typing import Generic, TypeVar

Request = TypeVar("Request")
Response = TypeVar("Response")


class StoppingError(Exception):
    """The stream was stopped: the requests that were not read get no response."""


class OrderedStream(Generic[Request, Response]):
    """Responses in request order. At most `read_ahead` requests are read before the caller takes their responses."""

    def __init__(
        self, requests: AsyncIterable[Request], respond: Callable[[Request], Awaitable[Response]], read_ahead: int
    ) -> None:
        self._requests = requests
        self._respond = respond
        self._may_read = asyncio.Semaphore(read_ahead)
        # Responses in progress, in the order of their requests; then the end of the stream: its error, or None.
        self._pending: asyncio.Queue[asyncio.Future[Response] | BaseException | None] = asyncio.Queue()
        self._reader = asyncio.ensure_future(self._read())
        self._reader.add_done_callback(self._put_end)

    async def responses(self) -> AsyncIterator[Response]:
        """Yield one response for each request. Raises StoppingError, and the errors of `respond` and the requests."""
        while True:
            pending = await self._pending.get()
            if pending is None:
                return
            if isinstance(pending, BaseException):
                raise pending
            try:
                response = await pending
            finally:
                pending.cancel()
            self._may_read.release()
            yield response

    def stop(self) -> None:
        """Read no more requests; `responses` raises StoppingError after the responses to the requests already read."""
        self._reader.cancel()

    def close(self) -> None:
        """Cancel everything in progress."""
        self._reader.cancel()
        while not self._pending.empty():
            pending = self._pending.get_nowait()
            if isinstance(pending, asyncio.Future):
                pending.cancel()

    async def _read(self) -> None:
        requests = aiter(self._requests)
        while True:
            await self._may_read.acquire()
            try:
                request = await anext(requests)
            except StopAsyncIteration:
                return
            pending = asyncio.ensure_future(self._respond(request))
            pending.add_done_callback(_retrieve_error)
            self._pending.put_nowait(pending)

    def _put_end(self, reader: "asyncio.Task[None]") -> None:
        """Put the end of the stream after the last response: None, StoppingError, or the error of the connection."""
        self._pending.put_nowait(StoppingError() if reader.cancelled() else reader.exception())


def _retrieve_error(done: "asyncio.Future[Response]") -> None:
    """Mark the error of a response as retrieved; asyncio would log it if nobody takes the response."""
    if not done.cancelled():
        done.exception()
