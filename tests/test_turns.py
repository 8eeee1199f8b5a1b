"""Turns: clients in rotation, each client's own order, places of callers that leave; and rendering by such turns."""

import asyncio
import threading
from collections.abc import Sequence
from functools import partial

import pytest

from reward_server.monitoring import Metrics
from reward_server.pb import reward_pb2 as pb
from reward_server.scheduling.round_robin import RoundRobinLock
from reward_server.scheduling.scheduler import Caller, Scheduler
from reward_server.scoring.load_pair import open_pair
from reward_server.scoring.model_pair import Pair, RenderedGroup
from reward_server.serving.wire import MalformedError, parse_group, parse_options
from tests.served import held
from tests.tiny_models import make_model
from winnow.serve_config import QueueConfig, ServeConfig


def order(calls: Sequence[str], leave: Sequence[int] = (), leave_late: Sequence[int] = ()) -> list[str]:
    """The calls in the order in which they had their turns.

    All come while a first one is inside. Some leave while they wait, some in the very step in which their turn came.
    """
    turns, seen = RoundRobinLock(), []

    async def call(name: str) -> None:
        async with turns.of(name[0]):
            seen.append(name)
            await asyncio.sleep(0)

    async def all_of_them() -> None:
        async with turns.of("first"):
            tasks = [asyncio.ensure_future(call(name)) for name in calls]
            await asyncio.sleep(0)
            assert turns.num == sum(turns.num_of.values()) == 1 + len(calls)
            for index in leave:
                tasks[index].cancel()
            await asyncio.sleep(0)
        for index in leave_late:
            tasks[index].cancel()
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
        assert (turns.num, dict(turns.num_of)) == (0, {})
        await asyncio.wait_for(call("z-last"), 10)  # nobody is left inside

    asyncio.run(all_of_them())
    assert seen.pop() == "z-last"
    return seen


def test_clients_take_turns_and_each_keeps_its_order() -> None:
    assert order(["a1", "a2", "a3", "a4", "b1", "b2", "c1"]) == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]


def test_a_caller_that_leaves_loses_its_place() -> None:
    assert order(["a1", "a2", "b1", "c1"], leave=[0, 3]) == ["b1", "a2"]


def test_a_turn_that_came_too_late_is_passed_on() -> None:
    assert order(["a1", "a2", "b1"], leave_late=[0]) == ["b1", "a2"]
    assert order(["a1"], leave_late=[0]) == []


def test_one_that_fails_passes_the_turn_on() -> None:
    turns = RoundRobinLock()

    async def fail() -> None:
        async with turns.of("a"):
            raise ValueError

    async def both() -> bool:
        await asyncio.gather(fail(), return_exceptions=True)
        async with turns.of("a"):
            return True

    assert asyncio.run(asyncio.wait_for(both(), 10))
    assert not turns.num


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    root = tmp_path_factory.mktemp("pair")
    instruct, base = (str(make_model("llama", root / name, seed)) for seed, name in enumerate(["instruct", "base"]))
    return open_pair(ServeConfig(instruct=instruct, base=base, chat_template="lab", dtype="float32", device_map="cpu"))


def work(pair: Pair) -> RenderedGroup:
    group = parse_group(
        pb.ScoreRequest(
            prompt_token_ids=pb.TokenIds(ids=[0, 9, 10]),
            completions=[pb.Completion(token_ids=pb.TokenIds(ids=[11, 12]))],
        ),
        max_completions=1,
    )
    return pair.prepare(group, parse_options(pb.ScoreOptions()))


async def rendered(pair: Pair, clients: Sequence[str]) -> list[str]:
    """The clients in the order in which their groups were rendered; all came while a first one was."""
    order: list[str] = []
    may_render = threading.Event()
    scheduler = Scheduler(pair, QueueConfig(), 1000, Metrics())

    def prepare(client: str) -> RenderedGroup:
        assert may_render.wait(30)
        order.append(client)
        return work(pair)

    calls = [asyncio.ensure_future(scheduler.score(partial(prepare, client), Caller(client))) for client in clients]
    await asyncio.sleep(0.05)
    may_render.set()
    for scored in await asyncio.wait_for(asyncio.gather(*calls), 30):
        assert [outcome.status for outcome in scored.outcomes] == ["ok"]
    scheduler.close()
    return order


def test_a_client_that_sends_much_does_not_hold_up_the_rendering_of_another(pair: Pair) -> None:
    assert asyncio.run(rendered(pair, ["many"] * 5 + ["few"])) == ["many", "many", "few", "many", "many", "many"]


def test_what_waits_for_room_goes_on_when_what_took_it_fails_to_render(pair: Pair) -> None:
    def broken() -> RenderedGroup:
        raise MalformedError("no such thing")

    async def three() -> list[object]:
        scheduler = Scheduler(pair, QueueConfig(max_groups=1), 1000, Metrics())
        caller = Caller("stream", waits_for_room=True)
        calls = asyncio.gather(*(scheduler.score(broken, caller) for _ in range(3)), return_exceptions=True)
        results = await asyncio.wait_for(calls, 10)
        scheduler.close()
        return list(results)

    assert [type(result) for result in asyncio.run(three())] == [MalformedError] * 3


def test_many_streams_of_one_client_leave_room_to_another(pair: Pair) -> None:
    with_hold, engine = held(pair)
    engine.may_compute.clear()

    async def crowd() -> list[str]:
        scheduler = Scheduler(with_hold, QueueConfig(max_groups=8), 1000, Metrics())
        many = Caller("many", waits_for_room=True)
        calls = [asyncio.ensure_future(scheduler.score(lambda: work(pair), many)) for _ in range(200)]
        await asyncio.sleep(0.5)  # until its part of the queue is full
        few = asyncio.ensure_future(scheduler.score(lambda: work(pair), Caller("few")))
        await asyncio.sleep(0.1)
        engine.may_compute.set()
        scored = await asyncio.wait_for(asyncio.gather(few, *calls), 60)
        scheduler.close()
        return [outcome.status for one in scored for outcome in one.outcomes]

    assert asyncio.run(crowd()) == ["ok"] * 201
