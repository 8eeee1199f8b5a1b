"""Reward servers in a thread of the test process, and an engine that a test can hold, break and watch."""

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, TypeVar

import grpc

from reward_server.engines import Logprobs, ScoringEngine, TokenGroup
from reward_server.pb import reward_pb2 as pb
from reward_server.pb.reward_pb2_grpc import RewardServiceStub
from reward_server.scoring.model_pair import Pair
from reward_server.serving.auth import load_auth
from reward_server.serving.server import RunningServer, start
from tests.processes import EVENT_TIMEOUT_S, wait_until
from tests.tiny_models import make_pair
from winnow.serve_config import ServeConfig

Result = TypeVar("Result")


def tiny_serve_config(folder: Path, kind: str = "llama", **settings: Any) -> ServeConfig:
    """Return the config of a server on tiny models: on the CPU, in single precision, on a free port of loopback."""
    fixed = {"chat_template": "lab", "listen": "127.0.0.1:0", "dtype": "float32", "device_map": "cpu"}
    return ServeConfig(**make_pair(folder, kind), **{**fixed, **settings})


class ServerThread:
    """A server that answers at `address` for the time of a `with` block."""

    def __init__(self, config: ServeConfig, pair: Pair) -> None:
        self.config = config
        self.pair = pair
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.running: RunningServer = self.submit(start(config, pair, load_auth(config))).result(EVENT_TIMEOUT_S)
        self.address = self.running.address

    def submit(self, coroutine: Coroutine[Any, Any, Result]) -> "Future[Result]":
        """Run a coroutine in the server's event loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def metric(self, name: str, **labels: str) -> float:
        """Return a value of the server's metrics; 0 if it was never counted."""
        return self.running.service.metrics.registry.get_sample_value(name, labels) or 0.0

    def close(self) -> None:
        self.submit(self.running.drain(1.0)).result(EVENT_TIMEOUT_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class HeldEngine:
    """An engine that computes while `may_compute` is set, records its calls, and fails on prompts that hold `poison`.

    It reports `device` as its device, or without one the device of its inner engine.
    """

    def __init__(self, inner: ScoringEngine, poison: int | None = None, device: str | None = None) -> None:
        self.inner = inner
        self.poison = poison
        self.device = device or inner.device
        self.may_compute = threading.Event()
        self.may_compute.set()
        self.calls: list[list[TokenGroup]] = []

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
        self.calls.append(list(groups))
        assert self.may_compute.wait(EVENT_TIMEOUT_S)
        if any(self.poison in group.prompt_ids for group in groups):
            raise RuntimeError("poison")
        return self.inner.logprobs(groups)

    def close(self) -> None:
        self.inner.close()

    def markers(self) -> list[list[int]]:
        """Return the second token id of each prompt, by which tests tell groups apart, batch by batch."""
        markers: list[list[int]] = []
        for groups in self.calls:
            markers.append([group.prompt_ids[1] for group in groups])
        return markers


def hold_engine(pair: Pair, poison: int | None = None) -> tuple[Pair, HeldEngine]:
    """Return the pair with its instruct engine held."""
    engine = HeldEngine(pair.instruct.engine, poison)
    return replace(pair, instruct=replace(pair.instruct, engine=engine)), engine


class HeldServer(ServerThread):
    """A server whose instruct engine is held, with a channel to it."""

    def __init__(self, config: ServeConfig, pair: Pair, poison: int | None = None) -> None:
        held_pair, self.engine = hold_engine(pair, poison)
        super().__init__(config, held_pair)
        self.channel = grpc.insecure_channel(self.address)
        self.stub: Any = RewardServiceStub(self.channel)  # type: ignore[no-untyped-call]
        self.queue = self.running.service.scheduler.queue

    def call(self, marker: int = 9, client: str = "a", timeout: float = 60.0) -> Any:
        """Start a call and return its future."""
        metadata = [("winnow-client", client)]
        return self.stub.Score.future(token_request(marker), timeout=timeout, metadata=metadata)

    def hold(self) -> Any:
        """Hold the engine with a batch of one group, and return the call of that group."""
        self.engine.may_compute.clear()
        first = self.call(marker=100)
        wait_until(lambda: bool(self.engine.calls), "the first batch")
        return first

    def wait_for_groups(self, num_groups: int) -> None:
        """Wait until so many groups are in the queue."""
        wait_until(lambda: self.queue.num_groups == num_groups, f"{num_groups} groups in the queue")

    def markers_after_hold(self) -> list[list[int]]:
        """Return the markers of each batch after the one that was held."""
        return self.engine.markers()[1:]

    def close(self) -> None:
        self.engine.may_compute.set()
        self.channel.close()
        super().close()


def token_request(marker: int = 9, request_id: str = "") -> pb.ScoreRequest:
    """Return a request of one completion, as token ids; the marker is a token of its prompt."""
    return pb.ScoreRequest(
        request_id=request_id,
        prompt_token_ids=pb.TokenIds(ids=[0, marker, 10, 11]),
        completions=[pb.Completion(token_ids=pb.TokenIds(ids=[12, 13]))],
    )


# The cost of such a request: prompt and completion, for both models.
TOKENS_OF_REQUEST = 2 * (4 + 2)
