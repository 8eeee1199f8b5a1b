"""The server as a process: its one line on stdout, how it ends, and what it says when it cannot start."""

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from reward_server.client import RewardClient
from reward_server.pb import reward_pb2 as pb
from reward_server.pb.reward_pb2_grpc import RewardServiceStub
from reward_server.serving.server import callable_address
from tests.served import wait_until
from tests.tiny_models import make_model
from winnow.errors import ServerError

ROOT = Path(__file__).parent.parent
START_S = 120


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("pair")
    instruct, base = (make_model("llama", root / name, seed) for seed, name in enumerate(["instruct", "base"]))
    return ["--instruct", str(instruct), "--base", str(base), "--listen", "127.0.0.1:0"]


@contextmanager
def serving(arguments: list[str]) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-m", "winnow.cli", "serve", *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=ROOT) as process:
        try:
            yield process
        finally:
            process.kill()


def address_of(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], START_S)[0], "the server said nothing"
    line = process.stdout.readline()
    assert line.startswith("listening on 127.0.0.1:")
    return line.removeprefix("listening on ").strip()


def test_sigterm_ends_it_with_exit_code_0(pair: list[str]) -> None:
    with serving(pair) as process:
        with RewardClient(address_of(process), timeout_s=60) as client:
            client.wait_until_ready(30)
            assert client.score([{"role": "user", "content": "Hi"}], ["yes"])[0].status == "ok"
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 0
    assert "loading" in errors
    assert "float32 on cpu, weights sha256:" in errors
    assert "client.score(" in errors
    assert "Traceback" not in errors


def test_a_watch_of_its_health_does_not_hold_it_up(pair: list[str]) -> None:
    with serving(pair) as process, grpc.insecure_channel(address_of(process)) as channel:
        watch = HealthStub(channel).Watch(HealthCheckRequest())
        assert next(watch).status == HealthCheckResponse.SERVING
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=15) == 0  # drain_s is 20


def test_a_second_signal_ends_it_at_once_with_exit_code_1(pair: list[str], tmp_path: Path) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text("instruct: unset\nbase: unset\ndrain_s: 600\ncache_bytes: 0\nchat_template: lab\n")
    long = pb.ScoreRequest(prompt_token_ids=pb.TokenIds(ids=[0, 9]))
    long.completions.extend([pb.Completion(token_ids=pb.TokenIds(ids=[10] * 500))] * 1024)
    with serving([str(config), *pair]) as process, grpc.insecure_channel(address_of(process)) as channel:
        watch = HealthStub(channel).Watch(HealthCheckRequest())
        assert next(watch).status == HealthCheckResponse.SERVING
        stub = RewardServiceStub(channel)  # type: ignore[no-untyped-call]
        call = stub.Score.future(long)
        stub.GetServerInfo(pb.GetServerInfoRequest())
        process.send_signal(signal.SIGTERM)
        assert next(watch).status == HealthCheckResponse.NOT_SERVING
        assert not call.done()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 1
    assert "told to stop again" in errors


def test_it_ends_when_its_parent_closes_stdin(pair: list[str]) -> None:
    with serving([*pair, "--until-stdin-closes"]) as process:
        address_of(process)
        time.sleep(0.2)
        assert process.poll() is None
        process.communicate(timeout=30)
        assert process.returncode == 0


def test_a_model_that_is_not_there_is_one_line_and_exit_code_2(pair: list[str]) -> None:
    with serving([*pair[:2], "--base", "./no/such/model"]) as process:
        output, errors = process.communicate(timeout=START_S)
        assert process.returncode == 2
    assert output == ""
    assert "winnow: model folder './no/such/model' does not exist" in errors.splitlines()[-1]


def test_a_killed_engine_costs_the_batch_at_hand_and_the_server_goes_on(pair: list[str]) -> None:
    message = [{"role": "user", "content": "Hi"}]
    with serving(pair) as process, RewardClient(address_of(process), timeout_s=120) as client:
        expected = client.score(message, ["yes"])[0].reward
        engines = engines_of(process)
        os.kill(engines, signal.SIGSTOP)
        with ThreadPoolExecutor() as threads:
            pending = threads.submit(client.score, message, ["no"])
            time.sleep(3.0)  # until it is being computed
            os.kill(engines, signal.SIGKILL)
            with pytest.raises(ServerError, match="scoring failed"):
                pending.result(timeout=60)
        assert client.score(message, ["yes"])[0].reward == expected  # from the cache, which the server holds
        assert client.score(message, ["no"])[0].status == "ok"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0


def children_of(process: "subprocess.Popen[str]") -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def engines_of(process: "subprocess.Popen[str]") -> int:
    """The process that computes: the larger one of the server's two children."""
    return max(children_of(process), key=lambda pid: int(Path(f"/proc/{pid}/statm").read_text().split()[1]))


@pytest.mark.parametrize("wait_s", [0.0, 0.05, 0.2, 0.5, 1.0, 2.0])
def test_an_interruption_while_it_starts_ends_it_quietly(pair: list[str], wait_s: float) -> None:
    """As Ctrl-C does it: every process of the group gets the signal, those that are only being started too."""
    command = [sys.executable, "-m", "winnow.cli", "serve", *pair]
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True, cwd=ROOT, start_new_session=True) as process:
        wait_until(lambda: bool(children_of(process)), "the first process that it starts")
        time.sleep(wait_s)
        os.killpg(process.pid, signal.SIGINT)
        try:
            output, errors = process.communicate(timeout=START_S)
        finally:
            process.kill()
    assert "KeyboardInterrupt" not in errors
    assert process.returncode == (0 if output else 130)


def test_the_example_call_names_a_host_that_can_be_called() -> None:
    assert callable_address("0.0.0.0:50051") == f"{socket.gethostname()}:50051"
    assert callable_address("[::]:50051") == f"{socket.gethostname()}:50051"
    assert callable_address("127.0.0.1:50051") == "127.0.0.1:50051"
    assert callable_address("rewards.internal:1") == "rewards.internal:1"


def test_a_fault_of_the_files_is_found_before_the_models_are_loaded(pair: list[str], tmp_path: Path) -> None:
    base = shutil.copytree(pair[3], tmp_path / "base", ignore=shutil.ignore_patterns("tokenizer*"))
    with serving([*pair[:2], "--base", str(base), *pair[4:]]) as process:
        _, errors = process.communicate(timeout=START_S)
        assert process.returncode == 1
    assert "loading" not in errors
    assert "no tokenizer could be loaded" in errors
