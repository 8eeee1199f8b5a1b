"""Scheduler in the test's event loop: the example of its module, rendering in rotation, waiting for capacity."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from functools import partial

import pytest

from reward_server.monitoring import Call, Metrics
from reward_server.scheduling import scheduler as scheduler_module
from reward_server.scheduling.fair_queue import QueueFullError
from reward_server.scheduling.scheduler import Caller, Scheduler
from reward_server.scoring.model_pair import Pair, RenderedGroup
from reward_server.scoring.reward import CompletionResult
from reward_server.serving.wire import MalformedError, parse_group
from tests.pairs import open_pair
from tests.processes import async_wait_until
from tests.served import TOKENS_OF_REQUEST, hold_engine, tiny_serve_config, token_request
from winnow.reward_options import RewardOptions
from winnow.serve_config import QueueConfig


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return open_pair(tiny_serve_config(tmp_path_factory.mktemp("pair")))


def score(
    scheduler: Scheduler, render: Callable[[], RenderedGroup], client: str, *, should_wait_for_capacity: bool = False
) -> "asyncio.Task[list[CompletionResult]]":
    """Start to score a group of a client."""
    caller = Caller(client, should_wait_for_capacity=should_wait_for_capacity)
    return asyncio.ensure_future(scheduler.score(render, caller, Call("Score", client, Metrics())))


def render(pair: Pair, marker: int = 9) -> RenderedGroup:
    """Render a group of one completion."""
    group = parse_group(token_request(marker), max_completions=1)
    return pair.render(group, RewardOptions())


def test_the_timeline_of_the_modules_example(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    # The window stays open until no group comes any more, however slow this machine is.
    monkeypatch.setattr(scheduler_module, "MAX_BATCHING_WINDOW_S", 60.0)
    held_pair, engine = hold_engine(pair)

    async def run() -> None:
        engine.may_compute.clear()
        scheduler = Scheduler(held_pair, QueueConfig(), 100, Metrics())

        calls = [score(scheduler, partial(render, pair, 20), "a"), score(scheduler, partial(render, pair, 21), "b")]
        await async_wait_until(lambda: bool(engine.calls), "the first batch")
        calls.append(score(scheduler, partial(render, pair, 22), "c"))
        await async_wait_until(lambda: scheduler.queue.num_groups == 1, "c's group in the queue")
        assert not any(call.done() for call in calls)
        engine.may_compute.set()
        await asyncio.wait_for(asyncio.gather(*calls), 30)
        scheduler.close()

    asyncio.run(run())
    assert engine.markers() == [[20, 21], [22]]


async def order_of_rendering(pair: Pair, clients: Sequence[str]) -> list[str]:
    """Return the clients in the order in which their groups are rendered; all arrive while the first is rendered."""
    order: list[str] = []
    may_render = threading.Event()
    scheduler = Scheduler(pair, QueueConfig(), 1000, Metrics())

    def wait_and_render(client: str) -> RenderedGroup:
        assert may_render.wait(30)
        order.append(client)
        return render(pair)

    calls = [score(scheduler, partial(wait_and_render, client), client) for client in clients]
    await asyncio.sleep(0)  # each call runs until it waits to be rendered
    may_render.set()
    for results in await asyncio.wait_for(asyncio.gather(*calls), 30):
        assert [result.status for result in results] == ["ok"]
    scheduler.close()
    return order


def test_a_client_with_many_groups_does_not_delay_the_rendering_of_another(pair: Pair) -> None:
    order = asyncio.run(order_of_rendering(pair, ["many"] * 5 + ["few"]))
    assert order == ["many", "many", "few", "many", "many", "many"]


def test_a_group_that_waits_for_capacity_continues_when_a_group_before_it_fails_to_render(pair: Pair) -> None:
    may_fail = threading.Event()

    def wait_and_fail() -> RenderedGroup:
        assert may_fail.wait(30)
        raise MalformedError("no such thing")

    async def score_both() -> None:
        # The group that is being rendered takes the only place in the queue, so that the stream's group waits.
        scheduler = Scheduler(pair, QueueConfig(max_groups=1), 1000, Metrics())
        failing = score(scheduler, wait_and_fail, "a")
        waiting = score(scheduler, partial(render, pair), "b", should_wait_for_capacity=True)
        await asyncio.sleep(0)  # both run until they wait
        may_fail.set()
        with pytest.raises(MalformedError):
            await asyncio.wait_for(failing, 30)
        results = await asyncio.wait_for(waiting, 30)
        assert results[0].status == "ok"
        scheduler.close()

    asyncio.run(score_both())


def test_groups_of_a_stream_that_fail_to_render_do_not_block_each_other(pair: Pair) -> None:
    def fail() -> RenderedGroup:
        raise MalformedError("no such thing")

    async def score_three() -> list[object]:
        scheduler = Scheduler(pair, QueueConfig(max_groups=1), 1000, Metrics())
        calls = [score(scheduler, fail, "stream", should_wait_for_capacity=True) for _ in range(3)]
        results = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 10)
        scheduler.close()
        return list(results)

    assert [type(result) for result in asyncio.run(score_three())] == [MalformedError] * 3


def test_a_group_is_refused_without_rendering_if_the_queue_becomes_full_before_it(pair: Pair) -> None:
    held_pair, engine = hold_engine(pair)
    engine.may_compute.clear()
    may_render = threading.Event()
    rendered: list[str] = []

    def wait_and_render(client: str) -> RenderedGroup:
        assert may_render.wait(30)
        rendered.append(client)
        return render(pair)

    async def fill_while_a_group_waits() -> None:
        # Each group is charged half of the queue: it has capacity for two groups.
        scheduler = Scheduler(held_pair, QueueConfig(max_tokens=TOKENS_OF_REQUEST), TOKENS_OF_REQUEST, Metrics())
        admitted = [score(scheduler, partial(render, pair), "computing")]
        await async_wait_until(lambda: bool(engine.calls), "the first batch")
        admitted.append(score(scheduler, partial(render, pair), "a"))
        await async_wait_until(lambda: scheduler.queue.num_groups == 1, "a's group in the queue")
        admitted.append(score(scheduler, partial(wait_and_render, "b"), "b"))
        refused = score(scheduler, partial(wait_and_render, "c"), "c")
        await asyncio.sleep(0)  # b's group is being rendered, c's group waits to be rendered
        may_render.set()
        with pytest.raises(QueueFullError):
            await asyncio.wait_for(refused, 30)
        engine.may_compute.set()
        await asyncio.wait_for(asyncio.gather(*admitted), 30)
        scheduler.close()

    asyncio.run(fill_while_a_group_waits())
    assert rendered == ["b"]


def test_many_streams_of_a_client_leave_capacity_to_another_client(pair: Pair) -> None:
    held_pair, engine = hold_engine(pair)
    engine.may_compute.clear()
    num_rendered = 0

    def render_and_count() -> RenderedGroup:
        nonlocal num_rendered
        num_rendered += 1
        return render(pair)

    async def score_all() -> list[str]:
        # The queue has capacity for 8 groups. A batch takes one group, which the engine then holds.
        scheduler = Scheduler(held_pair, QueueConfig(max_groups=8), TOKENS_OF_REQUEST, Metrics())
        queue = scheduler.queue
        calls = [score(scheduler, render_and_count, "many", should_wait_for_capacity=True) for _ in range(200)]

        def is_settled() -> bool:
            """Tell whether the client's share is full and every group that was rendered is in the queue or computed."""
            return queue.is_full("many") and num_rendered == len(engine.calls) + queue.num_groups

        await async_wait_until(lambda: len(engine.calls) == 1 and is_settled(), "a full share of the queue")
        assert queue.num_groups == 4
        assert not queue.is_full("few")
        few = score(scheduler, render_and_count, "few")
        await async_wait_until(lambda: queue.num_groups > 4, "the other client's group in the queue")
        assert len(engine.calls) == 1
        engine.may_compute.set()
        statuses = []
        for results in await asyncio.wait_for(asyncio.gather(few, *calls), 60):
            statuses.append(results[0].status)
        scheduler.close()
        return statuses

    assert asyncio.run(score_all()) == ["ok"] * 201
