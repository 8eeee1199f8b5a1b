"""A reward server in a thread of its own, and engines that a test can hold, break or count."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from reward_server.engines import Logprobs, ScoringEngine, TokenGroup
from reward_server.scoring.model_pair import Pair
from reward_server.serving.server import RunningServer, start
from winnow.serve_config import ServeConfig

Result = TypeVar("Result")


class Served:
    """A server that answers at `address` until it is closed."""

    def __init__(self, config: ServeConfig, pair: Pair) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.running: RunningServer = self.do(start(config, pair))
        self.address = self.running.address

    def do(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """Run something in the server's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    def metric(self, name: str, **labels: str) -> float:
        """A number of the server's metrics; 0 where it was never counted."""
        return self.running.service.metrics.registry.get_sample_value(name, labels) or 0.0

    def close(self) -> None:
        self.do(self.running.drain(1.0))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@contextmanager
def served(config: ServeConfig, pair: Pair) -> Iterator[Served]:
    """A server for the time of a block."""
    server = Served(config, pair)
    try:
        yield server
    finally:
        server.close()


class HeldEngine:
    """An engine that computes when it may, notes what it was asked, and fails on prompts that hold a poisonous id.

    It says that it lies on `device`; None: where its inner engine does.
    """

    def __init__(self, inner: ScoringEngine, poison: int | None = None, device: str | None = None) -> None:
        self.inner = inner
        self.poison = poison
        self.device = device or inner.device
        self.may_compute = threading.Event()
        self.may_compute.set()
        self.asked: list[list[TokenGroup]] = []

    @property
    def dtype(self) -> str:
        return self.inner.dtype

    @property
    def vocab_size(self) -> int:
        return self.inner.vocab_size

    @property
    def max_tokens(self) -> int | None:
        return self.inner.max_tokens

    def logprobs(self, groups: Sequence[TokenGroup]) -> list[list[Logprobs]]:
        self.asked.append(list(groups))
        assert self.may_compute.wait(30)
        if any(self.poison in group.prompt_ids for group in groups):
            raise RuntimeError("poison")
        return self.inner.logprobs(groups)

    def close(self) -> None:
        self.inner.close()


def held(pair: Pair, poison: int | None = None) -> tuple[Pair, HeldEngine]:
    """The pair with its instruct engine held."""
    engine = HeldEngine(pair.instruct.engine, poison)
    return replace(pair, instruct=replace(pair.instruct, engine=engine)), engine


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    """Wait for something that will come; fail if it does not."""
    until = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < until, f"never came: {what}"
        time.sleep(0.005)
