"""Engines in processes of their own, so that RPC handling cannot slow or crash the computation, and vice versa.

    server process                              engine process
    RemoteEngine.logprobs(groups)   -- (index, groups) -->        engines[index].logprobs(groups)
                                    <-- log-probabilities, or an exception --

In one process, Python runs one thread at a time: each step of each layer would wait for a busy event loop. For the same
reason, models on separate devices, which compute at the same time, get one process each. When a process is killed, the
batch that it computes fails; the next batch starts a new process, which loads the models again. An engine process ends
together with the server's process, even if that one is killed.
"""

import atexit
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, cast

from reward_server.engines import MODEL_NAMES, Logprobs, ModelName, ScoringEngine, TokenGroup
from reward_server.engines.allocator import keep_memory
from reward_server.engines.loading import has_separate_devices, load_engines
from reward_server.monitoring import log_to_stderr
from winnow.errors import ModelError, WinnowError
from winnow.import_path import inherited_environment
from winnow.serve_config import ServeConfig

log = logging.getLogger(__name__)


class EngineError(RuntimeError):
    """An engine failed in its process, or the process ended; the message has the cause."""


def start_engines(config: ServeConfig) -> list[ScoringEngine]:
    """Load the engines in other processes and return them. Raises UsageError and ModelError, as `load_engines` does.

    Models on separate devices are loaded at the same time. vLLM has processes of its own.
    """
    if config.engine == "vllm":
        return load_engines(config)
    if has_separate_devices(config):
        processes = [EngineProcess(config, (name,)) for name in MODEL_NAMES]
    else:
        processes = [EngineProcess(config, MODEL_NAMES)]
    return _wait_for_engines(processes)


def _wait_for_engines(processes: "Sequence[EngineProcess]") -> list[ScoringEngine]:
    """Return the engines of all processes, in order. If one fails to load, all processes end, loaded or not."""
    loading = {process.connection: process for process in processes}
    engines: dict[EngineProcess, list[ScoringEngine]] = {}
    try:
        while loading:
            for connection in wait(loading):
                process = loading.pop(cast(Connection, connection))
                engines[process] = process.wait()
    except Exception:
        for process in processes:
            process.close()
        raise
    return [engine for process in processes for engine in engines[process]]


@dataclass(frozen=True)
class EngineInfo:
    """The properties of an engine, sent from its process once it is loaded."""

    dtype: str
    device: str
    vocab_size: int
    max_tokens: int | None

    @classmethod
    def of(cls, engine: ScoringEngine) -> "EngineInfo":
        """Return the properties of a loaded engine."""
        return cls(engine.dtype, engine.device, engine.vocab_size, engine.max_tokens)


class EngineProcess:
    """A process with engines of some of the pair's models, which it begins to load at once. One call at a time."""

    def __init__(self, config: ServeConfig, models: Sequence[ModelName] = MODEL_NAMES) -> None:
        self._config = config
        self._models = models
        self._lock = threading.Lock()
        self._start()

    @property
    def pid(self) -> int | None:
        """Id of the current process."""
        return self._process.pid

    def wait(self) -> list[ScoringEngine]:
        """Wait until the engines are loaded, and return them. Raises the error with which loading failed."""
        return [RemoteEngine(self, index, info) for index, info in enumerate(self._receive_infos())]

    def logprobs(self, index: int, groups: Sequence[TokenGroup]) -> list[list[Logprobs]]:
        """Compute as specified by `ScoringEngine`. Raises EngineError. Restarts a process that has ended."""
        with self._lock:
            if not self._process.is_alive():
                log.error("%s; the models are loaded again", self._clean_up())
                self._start()
                self._receive_infos()
            try:
                self.connection.send((index, groups))
                results: list[list[Logprobs]] = self._receive()
            except (EOFError, OSError) as error:
                raise EngineError(self._clean_up()) from error
        return results

    def close(self) -> None:
        """Kill the process: it has nothing to save."""
        atexit.unregister(self.close)
        self._process.kill()
        self._process.join()
        self.connection.close()

    def _start(self) -> None:
        # "spawn": a forked copy of this process would hold its threads' locks, and a GPU library in an unusable state.
        context = multiprocessing.get_context("spawn")
        self.connection, child_connection = context.Pipe()
        self._process = context.Process(
            target=serve_engine, args=(child_connection, self._config, self._models), name="engines", daemon=True
        )
        with inherited_environment(), _delay_interrupts():
            self._process.start()
        child_connection.close()
        atexit.register(self.close)  # runs before multiprocessing's handler, which would wait for the process

    def _receive_infos(self) -> list[EngineInfo]:
        """Wait until the models are loaded, and return their engines' properties. Raises the error of loading."""
        try:
            infos: list[EngineInfo] = self._receive()
        except EOFError:
            raise ModelError(f"while the models were loaded, {self._clean_up()}; is there enough memory?") from None
        return infos

    def _receive(self) -> Any:
        """Receive the next message. Raises it if it is an exception, and EOFError if the process has ended."""
        message = self.connection.recv()
        if isinstance(message, Exception):
            raise message
        return message

    def _clean_up(self) -> str:
        """Release what a process that has ended leaves behind. Returns a sentence with its exit code."""
        self.close()
        return f"the engines' process ended with exit code {self._process.exitcode}"


class RemoteEngine:
    """One engine of an engine process."""

    def __init__(self, process: EngineProcess, index: int, info: EngineInfo) -> None:
        self.process = process
        self.dtype = info.dtype
        self.device = info.device
        self.vocab_size = info.vocab_size
        self.max_tokens = info.max_tokens
        self._index = index

    def logprobs(self, groups: Sequence[TokenGroup]) -> list[list[Logprobs]]:
        """Compute as specified by `ScoringEngine`. Raises EngineError."""
        return self.process.logprobs(self._index, groups)

    def close(self) -> None:
        """Kill the process, with all its engines."""
        self.process.close()


def serve_engine(connection: Connection, config: ServeConfig, models: Sequence[ModelName]) -> None:
    """Run the engine process: load the engines, send their properties, then compute each request until it is killed."""
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, signal.SIG_IGN)  # a terminal signals all processes; the server decides when to end
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
    connection.send([EngineInfo.of(engine) for engine in engines])
    while True:
        index, groups = connection.recv()
        connection.send(_logprobs_or_error(engines[index], groups))


def _logprobs_or_error(engine: ScoringEngine, groups: Sequence[TokenGroup]) -> list[list[Logprobs]] | EngineError:
    """Compute the log-probabilities, or return the error, so that the process survives a batch that fails."""
    try:
        return engine.logprobs(groups)
    except Exception as error:
        log.exception("the engine failed")
        return EngineError(f"{type(error).__name__}: {error}")


def _end_with_parent() -> None:
    """End this process as soon as its parent has ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextmanager
def _delay_interrupts() -> Iterator[None]:
    """Delay Ctrl-C until after the block. A process that is started in it never gets one: it ends with this process."""
    resource_tracker.ensure_running()  # starting it within the block would unblock the signal
    mask_before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask_before)
