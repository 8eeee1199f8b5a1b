"""Engines in separate processes: the same scores, failures that stay contained, a process that is started again."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reward_server.engines import ScoringEngine, TokenGroup
from reward_server.engines.loading import has_separate_devices, load_engines
from reward_server.engines.process import EngineError, EngineProcess, RemoteEngine, start_engines
from tests.processes import ROOT, is_running, wait_until
from tests.served import tiny_serve_config
from winnow.errors import ModelError
from winnow.serve_config import ServeConfig

GROUP = TokenGroup([0, 9, 10, 11], [[12, 13, 14], [12, 15]])


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ServeConfig:
    return tiny_serve_config(tmp_path_factory.mktemp("pair"), "mixtral")


@dataclass
class Started:
    """A process of engines, and the engines that call it."""

    process: EngineProcess
    engines: list[ScoringEngine]


@pytest.fixture(scope="module")
def started(config: ServeConfig) -> Iterator[Started]:
    process = EngineProcess(config)
    yield Started(process, process.wait())
    process.close()


def assert_same_scores(engine: ScoringEngine, expected: ScoringEngine) -> None:
    for values, expected_values in zip(engine.logprobs([GROUP])[0], expected.logprobs([GROUP])[0], strict=True):
        np.testing.assert_array_equal(values, expected_values)


def test_engines_of_the_process_score_as_local_engines(started: Started, config: ServeConfig) -> None:
    for remote, local in zip(started.engines, load_engines(config), strict=True):
        assert_same_scores(remote, local)
        assert (remote.dtype, remote.device) == (local.dtype, local.device)
        assert (remote.vocab_size, remote.max_tokens) == (local.vocab_size, local.max_tokens)


def test_an_engine_error_is_reported_and_the_process_stays(started: Started) -> None:
    invalid_group = TokenGroup([started.engines[0].vocab_size + 5], [[1, 2]])
    pid_before = started.process.pid
    with pytest.raises(EngineError, match="IndexError"):
        started.engines[0].logprobs([invalid_group])
    assert len(started.engines[0].logprobs([GROUP])[0]) == 2
    assert started.process.pid == pid_before


def test_a_killed_process_is_started_again(started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = started.engines[0].logprobs([GROUP])
    pid_before = started.process.pid
    assert pid_before is not None
    was_sent = observe_send(started.process, monkeypatch)
    os.kill(pid_before, signal.SIGSTOP)
    with ThreadPoolExecutor() as threads:
        pending = threads.submit(started.engines[1].logprobs, [GROUP])
        assert was_sent.wait(30)  # before that, the call would find an ended process, and start it again
        os.kill(pid_before, signal.SIGKILL)
        with pytest.raises(EngineError, match="exit code -9"):
            pending.result(timeout=30)
    logprobs = started.engines[0].logprobs([GROUP])
    assert started.process.pid != pid_before
    np.testing.assert_array_equal(logprobs[0][0], expected[0][0])


def observe_send(process: EngineProcess, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Return an event that is set when a call has been sent to the process."""
    was_sent = threading.Event()
    send = process.connection.send

    def send_and_set(message: Any) -> None:
        send(message)
        was_sent.set()

    monkeypatch.setattr(process.connection, "send", send_and_set)
    return was_sent


def test_an_error_of_loading_is_reported(config: ServeConfig, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model could be loaded"):
        EngineProcess(config.model_copy(update={"base": str(tmp_path)})).wait()


@pytest.mark.parametrize(
    ("device_map", "base_device_map", "are_separate"),
    [
        ("cuda:0", "cuda:1", True),
        ("cuda:0", "cpu", True),
        ("cuda:0", None, False),
        ("cuda:0", "cuda:0", False),
        ("auto", None, False),
        ("auto", "cuda:7", False),
        ("cuda:0", "balanced", False),
    ],
)
def test_have_separate_devices_needs_two_named_devices(
    device_map: str, base_device_map: str | None, are_separate: bool
) -> None:
    config = ServeConfig(instruct="a", base="b", device_map=device_map, base_device_map=base_device_map)
    assert has_separate_devices(config) == are_separate


@pytest.fixture
def config_of_two(config: ServeConfig) -> ServeConfig:
    """Return a config with two names of one device, which get two processes."""
    return config.model_copy(update={"base_device_map": "cpu:0"})


def test_models_on_separate_devices_have_separate_processes(config_of_two: ServeConfig, started: Started) -> None:
    engines = start_engines(config_of_two)
    assert len({engine.process.pid for engine in engines if isinstance(engine, RemoteEngine)}) == 2
    for engine, expected in zip(engines, started.engines, strict=True):
        assert_same_scores(engine, expected)
        engine.close()


def test_both_processes_end_if_one_cannot_load(
    config_of_two: ServeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids: list[int] = []

    class RecordedProcess(EngineProcess):
        def _start(self) -> None:
            super()._start()
            assert self.pid is not None
            pids.append(self.pid)

    monkeypatch.setattr("reward_server.engines.process.EngineProcess", RecordedProcess)
    with pytest.raises(ModelError, match="no model could be loaded"):
        start_engines(config_of_two.model_copy(update={"base": str(tmp_path)}))
    assert len(set(pids)) == 2
    wait_until(lambda: not any(is_running(pid) for pid in pids), "the end of both processes")


def test_the_process_ends_with_its_parent(config: ServeConfig) -> None:
    program = (
        "import sys\n"
        "from reward_server.engines.process import EngineProcess\n"
        "from winnow.serve_config import ServeConfig\n"
        "if __name__ == '__main__':\n"
        "    process = EngineProcess(ServeConfig.model_validate_json(sys.argv[1]))\n"
        "    process.wait()\n"
        "    print(process.pid, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", program, config.model_dump_json()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_running(pid)
        parent.kill()
    wait_until(lambda: not is_running(pid), "the end of the engines' process")
