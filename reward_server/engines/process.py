"""The engines in processes of their own, so that who answers calls neither holds up who computes nor dies with it.

    server process                              engine process
    RemoteEngine.logprobs(groups)   -- (index, groups) -->        engines[index].logprobs(groups)
                                    <-- log-probabilities, or why there are none --

In one process, Python runs in one thread at a time: each step of each layer would wait for its turn beside a busy event
loop. For the same reason models on devices of their own, which compute at the same time, get a process each. A batch
that kills a process fails; the next one starts it anew, and its models are loaded again. It ends with the server's
process, however that ends.
"""

import atexit
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, cast

from reward_server.engines import MODELS, Logprobs, ModelName, ScoringEngine, TokenGroup
from reward_server.engines.allocator import keep_memory
from reward_server.engines.loading import have_own_devices, load_engines
from reward_server.monitoring import log_to_stderr
from winnow.errors import ModelError, WinnowError
from winnow.serve_config import ServeConfig

log = logging.getLogger(__name__)


class EngineError(RuntimeError):
    """An engine failed in its process, or the process ended; the message says which."""


def start_engines(config: ServeConfig) -> Callable[[], list[ScoringEngine]]:
    """Begin to load engines that compute in other processes than this one; returns what waits for them.

    That raises as `load_engines` does. vLLM has processes of its own.
    """
    if config.engine == "vllm":
        return partial(load_engines, config)
    shares = [(name,) for name in MODELS] if have_own_devices(config) else [MODELS]
    return partial(_engines_of, [EngineProcess(config, models) for models in shares])


def _engines_of(processes: "Sequence[EngineProcess]") -> list[ScoringEngine]:
    """The engines of all processes; where one fails to load, the others end with it, loaded or not."""
    engines: dict[int, list[ScoringEngine]] = {}
    try:
        while len(engines) < len(processes):
            loading = {one.connection: index for index, one in enumerate(processes) if index not in engines}
            for ready in wait(loading):
                index = loading[cast(Connection, ready)]
                engines[index] = processes[index].wait()
    except Exception:
        for process in processes:
            process.close()
        raise
    return [engine for index in sorted(engines) for engine in engines[index]]


@dataclass(frozen=True)
class Facts:
    """What an engine says of itself."""

    dtype: str
    device: str
    vocab_size: int
    max_tokens: int | None

    @classmethod
    def of(cls, engine: ScoringEngine) -> "Facts":
        """The facts of an engine that is loaded."""
        return cls(engine.dtype, engine.device, engine.vocab_size, engine.max_tokens)


class EngineProcess:
    """A process with engines of some of the pair's models, which begins to load at once. Calls wait for each other."""

    def __init__(self, config: ServeConfig, models: Sequence[ModelName] = MODELS) -> None:
        self._config = config
        self._models = models
        self._lock = threading.Lock()
        self._start()

    @property
    def pid(self) -> int | None:
        """Of the process that runs now."""
        return self._process.pid

    def wait(self) -> list[ScoringEngine]:
        """Its engines, when they are loaded. Raises what loading failed with."""
        return [RemoteEngine(self, index, facts) for index, facts in enumerate(self._loaded())]

    def logprobs(self, index: int, groups: Sequence[TokenGroup]) -> list[list[Logprobs]]:
        """As `ScoringEngine` says. Raises EngineError; where the process has ended before, it is started anew."""
        with self._lock:
            if not self._process.is_alive():
                log.error("%s; the models are loaded again", self._end())
                self._start()
                self._loaded()
            try:
                self.connection.send((index, groups))
                answer: list[list[Logprobs]] = self._answer()
            except (EOFError, OSError) as error:
                raise EngineError(self._end()) from error
        return answer

    def close(self) -> None:
        """End the process at once: it has nothing to save."""
        atexit.unregister(self.close)
        self._process.kill()
        self._process.join()
        self.connection.close()

    def _start(self) -> None:
        # "spawn": a copy of this process would have its threads' locks, and a GPU's library in an unusable state.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(
            target=work, args=(theirs, self._config, self._models), name="engines", daemon=True
        )
        with _interrupts_wait():
            self._process.start()
        theirs.close()
        atexit.register(self.close)  # before multiprocessing's own, which waits for what ignores signals

    def _loaded(self) -> list[Facts]:
        """Wait until the models are loaded."""
        try:
            facts: list[Facts] = self._answer()
        except EOFError:
            raise ModelError(f"while the models were loaded, {self._end()}; is there memory enough?") from None
        return facts

    def _answer(self) -> Any:
        """What the process says next. Raises what it failed with, EOFError where it has ended."""
        answer = self.connection.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _end(self) -> str:
        """Clear away a process that has ended; returns how it did."""
        self.close()
        return f"the engines' process ended with exit code {self._process.exitcode}"


class RemoteEngine:
    """One engine of the process."""

    def __init__(self, process: EngineProcess, index: int, facts: Facts) -> None:
        self.process = process
        self.dtype = facts.dtype
        self.device = facts.device
        self.vocab_size = facts.vocab_size
        self.max_tokens = facts.max_tokens
        self._index = index

    def logprobs(self, groups: Sequence[TokenGroup]) -> list[list[Logprobs]]:
        """As `ScoringEngine` says. Raises EngineError."""
        return self.process.logprobs(self._index, groups)

    def close(self) -> None:
        """End the process, and with it any other engine of it."""
        self.process.close()


def work(connection: Connection, config: ServeConfig, models: Sequence[ModelName]) -> None:
    """What the process does: load, tell the engines' facts, then compute what is asked until nobody asks any more."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # sent to all of a group; the server decides when it is over
    threading.Thread(target=_end_with_parent, daemon=True).start()
    log_to_stderr()
    keep_memory()
    try:
        engines = load_engines(config, models)
    except WinnowError as error:
        connection.send(error)
        return
    except Exception as error:
        log.exception("loading failed")
        connection.send(ModelError(f"loading failed ({type(error).__name__}: {error}); see the log above"))
        return
    connection.send([Facts.of(engine) for engine in engines])
    while True:
        index, groups = connection.recv()
        connection.send(_attempt(engines[index], groups))


def _attempt(engine: ScoringEngine, groups: Sequence[TokenGroup]) -> list[list[Logprobs]] | EngineError:
    try:
        return engine.logprobs(groups)
    except Exception as error:
        log.exception("the engine failed")
        return EngineError(f"{type(error).__name__}: {error}")


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Let Ctrl-C come after the block. A process that is started in it never gets one: it ends with this process."""
    resource_tracker.ensure_running()  # as it is started, it would let them through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
