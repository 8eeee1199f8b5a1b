"""A stream's answers: their order, how far requests are read ahead, and every way in which it ends."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from reward_server.serving.ordered_stream import InOrder, StoppingError


async def numbers(until: int, error: Exception | None = None) -> AsyncIterator[int]:
    for number in range(until):
        yield number
    if error is not None:
        raise error


async def slower_first(number: int) -> int:
    await asyncio.sleep(0.02 if number == 0 else 0.0)
    return number


async def all_of(stream: InOrder[int, int]) -> list[int]:
    return [answer async for answer in stream.answers()]


def test_answers_come_in_the_order_of_the_requests() -> None:
    async def answered() -> list[int]:
        return await all_of(InOrder(numbers(5), slower_first, read_ahead=3))

    assert asyncio.run(answered()) == [0, 1, 2, 3, 4]


def test_no_more_is_read_ahead_than_it_says_and_what_was_read_is_answered() -> None:
    read = 0

    async def counted() -> AsyncIterator[int]:
        nonlocal read
        for number in range(100):
            read += 1
            yield number

    async def stopped() -> list[int]:
        stream = InOrder(counted(), slower_first, read_ahead=3)
        await asyncio.sleep(0.01)
        stream.stop()
        answers, seen = stream.answers(), []
        with contextlib.suppress(StoppingError):
            while True:
                seen.append(await asyncio.wait_for(anext(answers), 10))
        return seen

    assert asyncio.run(stopped()) == [0, 1, 2]
    assert read == 3


def test_a_broken_connection_is_raised_after_the_answers_before_it() -> None:
    async def broken() -> list[int]:
        answers = InOrder(numbers(2, OSError("gone")), slower_first, read_ahead=3).answers()
        before = [await anext(answers), await anext(answers)]
        with pytest.raises(OSError, match="gone"):
            await anext(answers)
        return before

    assert asyncio.run(broken()) == [0, 1]


@pytest.mark.parametrize("is_begun", [True, False])
def test_a_stream_that_is_stopped_ends_even_before_it_began(is_begun: bool) -> None:
    async def stopped() -> None:
        stream = InOrder(numbers(1000), slower_first, read_ahead=3)
        if is_begun:
            await asyncio.sleep(0)
        stream.stop()
        with pytest.raises(StoppingError):
            await asyncio.wait_for(all_of(stream), 10)

    asyncio.run(stopped())
