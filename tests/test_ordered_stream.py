"""OrderedStream: the order of the responses, how far requests are read ahead, and every way in which a stream ends."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from reward_server.serving.ordered_stream import OrderedStream, StoppingError


async def requests_until(stop: int, error: Exception | None = None) -> AsyncIterator[int]:
    """Yield the requests 0, 1, ... below `stop`; then raise the error, if there is one."""
    for request in range(stop):
        yield request
    if error is not None:
        raise error


async def echo(request: int) -> int:
    return request


async def all_responses(stream: OrderedStream[int, int]) -> list[int]:
    return [response async for response in stream.responses()]


def test_responses_come_in_the_order_of_the_requests() -> None:
    async def respond_to_all() -> tuple[list[int], list[int]]:
        finished: list[int] = []
        is_second_finished = asyncio.Event()

        async def second_before_first(request: int) -> int:
            if request == 0:
                await is_second_finished.wait()
            finished.append(request)
            if request == 1:
                is_second_finished.set()
            return request

        stream = OrderedStream(requests_until(5), second_before_first, read_ahead=3)
        return await asyncio.wait_for(all_responses(stream), 10), finished

    responses, finished = asyncio.run(respond_to_all())
    assert responses == [0, 1, 2, 3, 4]
    assert finished.index(1) < finished.index(0)


def test_a_stream_reads_only_read_ahead_requests_and_responds_to_those_after_stop() -> None:
    async def read_and_stop() -> tuple[list[int], list[int]]:
        read: list[int] = []
        responses: list[int] = []
        is_third_in_progress = asyncio.Event()

        async def count_requests() -> AsyncIterator[int]:
            for request in range(100):
                read.append(request)
                yield request

        async def respond(request: int) -> int:
            if request == 2:
                is_third_in_progress.set()
            return request

        stream = OrderedStream(count_requests(), respond, read_ahead=3)
        await asyncio.wait_for(is_third_in_progress.wait(), 10)
        for _ in range(100):  # a stream that read further would do so in these steps of the event loop
            await asyncio.sleep(0)
        stream.stop()
        stopped = stream.responses()
        for _ in range(3):
            responses.append(await asyncio.wait_for(anext(stopped), 10))
        with pytest.raises(StoppingError):
            await asyncio.wait_for(anext(stopped), 10)
        return read, responses

    read, responses = asyncio.run(read_and_stop())
    assert read == [0, 1, 2]
    assert responses == [0, 1, 2]


def test_a_response_that_is_taken_lets_the_next_request_be_read() -> None:
    async def take_one() -> tuple[list[int], list[int]]:
        read: list[int] = []

        async def count_requests() -> AsyncIterator[int]:
            for request in range(100):
                read.append(request)
                yield request

        async def steps() -> None:
            for _ in range(100):
                await asyncio.sleep(0)

        stream = OrderedStream(count_requests(), echo, read_ahead=3)
        await steps()
        before = list(read)
        await anext(stream.responses())
        await steps()
        stream.close()
        return before, read

    assert asyncio.run(take_one()) == ([0, 1, 2], [0, 1, 2, 3])


def test_a_broken_connection_is_raised_after_the_responses_before_it() -> None:
    async def break_after_two() -> list[int]:
        responses = OrderedStream(requests_until(2, OSError("gone")), echo, read_ahead=3).responses()
        before = [await anext(responses), await anext(responses)]
        with pytest.raises(OSError, match="gone"):
            await anext(responses)
        return before

    assert asyncio.run(break_after_two()) == [0, 1]


@pytest.mark.parametrize("is_begun", [True, False])
def test_a_stream_that_is_stopped_ends_even_before_it_began(is_begun: bool) -> None:
    async def stop_at_once() -> None:
        stream = OrderedStream(requests_until(1000), echo, read_ahead=3)
        if is_begun:
            await asyncio.sleep(0)
        stream.stop()
        with pytest.raises(StoppingError):
            await asyncio.wait_for(all_responses(stream), 10)

    asyncio.run(stop_at_once())
