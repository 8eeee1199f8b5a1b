"""Engines in a process of their own: the same scores, failures that stay there, a process that is started anew."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from reward_server.engines import ScoringEngine, TokenGroup
from reward_server.engines.loading import have_own_devices, load_engines
from reward_server.engines.process import EngineError, EngineProcess, RemoteEngine, start_engines
from tests.served import wait_until
from tests.tiny_models import make_model
from winnow.errors import ModelError
from winnow.serve_config import ServeConfig

ROOT = Path(__file__).parent.parent
GROUP = TokenGroup([0, 9, 10, 11], [[12, 13, 14], [12, 15]])


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ServeConfig:
    root = tmp_path_factory.mktemp("pair")
    instruct, base = (str(make_model("mixtral", root / name, seed)) for seed, name in enumerate(["instruct", "base"]))
    return ServeConfig(instruct=instruct, base=base, dtype="float32", device_map="cpu")


@dataclass
class Started:
    process: EngineProcess
    engines: list[ScoringEngine]


@pytest.fixture(scope="module")
def started(config: ServeConfig) -> Iterator[Started]:
    process = EngineProcess(config)
    yield Started(process, process.wait())
    process.close()


def test_the_process_scores_as_engines_here_do(started: Started, config: ServeConfig) -> None:
    for remote, here in zip(started.engines, load_engines(config), strict=True):
        for ours, theirs in zip(remote.logprobs([GROUP])[0], here.logprobs([GROUP])[0], strict=True):
            np.testing.assert_array_equal(ours, theirs)
        assert (remote.dtype, remote.device, remote.vocab_size, remote.max_tokens) == (
            here.dtype,
            here.device,
            here.vocab_size,
            here.max_tokens,
        )


def test_a_failure_of_the_engine_is_told_and_the_process_goes_on(started: Started) -> None:
    beyond = TokenGroup([started.engines[0].vocab_size + 5], [[1, 2]])
    before = started.process.pid
    with pytest.raises(EngineError, match="IndexError"):
        started.engines[0].logprobs([beyond])
    assert len(started.engines[0].logprobs([GROUP])[0]) == 2
    assert started.process.pid == before


def test_a_process_that_is_killed_is_started_anew(started: Started) -> None:
    expected, before = started.engines[0].logprobs([GROUP]), started.process.pid
    assert before is not None
    os.kill(before, signal.SIGSTOP)
    with ThreadPoolExecutor() as threads:
        pending = threads.submit(started.engines[1].logprobs, [GROUP])
        time.sleep(0.5)  # until it has been sent: a process that ends before a call is started anew
        os.kill(before, signal.SIGKILL)
        with pytest.raises(EngineError, match="exit code -9"):
            pending.result(timeout=30)
    after = started.engines[0].logprobs([GROUP])
    assert started.process.pid != before
    np.testing.assert_array_equal(after[0][0], expected[0][0])


def test_what_keeps_the_models_from_loading_is_told(config: ServeConfig, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model could be loaded"):
        EngineProcess(config.model_copy(update={"base": str(tmp_path)})).wait()


@pytest.mark.parametrize(
    ("device_map", "base_device_map", "have_own"),
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
def test_models_have_devices_of_their_own_where_the_config_names_two(
    device_map: str, base_device_map: str | None, have_own: bool
) -> None:
    config = ServeConfig(instruct="one", base="other", device_map=device_map, base_device_map=base_device_map)
    assert have_own_devices(config) == have_own


@pytest.fixture
def apart(config: ServeConfig) -> ServeConfig:
    """Two names of one device."""
    return config.model_copy(update={"base_device_map": "cpu:0"})


def test_models_with_devices_of_their_own_have_processes_of_their_own(apart: ServeConfig, started: Started) -> None:
    engines = start_engines(apart)()
    assert len({engine.process.pid for engine in engines if isinstance(engine, RemoteEngine)}) == 2
    for own, shared in zip(engines, started.engines, strict=True):
        for ours, theirs in zip(own.logprobs([GROUP])[0], shared.logprobs([GROUP])[0], strict=True):
            np.testing.assert_array_equal(ours, theirs)
        own.close()


def test_a_process_ends_when_the_other_cannot_load(apart: ServeConfig, tmp_path: Path) -> None:
    before = children()
    starting = start_engines(apart.model_copy(update={"base": str(tmp_path)}))
    new = children() - before
    assert len(new) == 2
    with pytest.raises(ModelError, match="no model could be loaded"):
        starting()
    wait_until(lambda: not any(is_running(pid) for pid in new), "the end of both processes")


def test_the_process_ends_with_the_one_that_started_it(config: ServeConfig) -> None:
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
        assert Path(f"/proc/{pid}").exists()
        parent.kill()
    wait_until(lambda: not is_running(pid), "the end of the engines' process")


def children() -> set[int]:
    return {child.pid for child in multiprocessing.active_children() if child.pid is not None}


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
