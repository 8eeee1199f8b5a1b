"""The server as a process: its line on stdout, the ways in which it ends, and its errors when it cannot start."""

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from reward_server.client import RewardClient
from reward_server.pb import reward_pb2 as pb
from reward_server.pb.reward_pb2_grpc import RewardServiceStub
from reward_server.serving.server import callable_address
from tests.processes import (
    ROOT,
    START_TIMEOUT_S,
    children_of,
    cpu_seconds,
    proc_folder,
    read_address,
    resident_pages,
    server_process,
    wait_until,
    winnow_command,
)
from tests.tiny_models import make_pair
from winnow.errors import ServerError


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    models = make_pair(tmp_path_factory.mktemp("pair"), "llama")
    return ["--instruct", models["instruct"], "--base", models["base"], "--listen", "127.0.0.1:0"]


def test_sigterm_ends_the_server_with_exit_code_0(pair: list[str]) -> None:
    with server_process(pair) as process:
        with RewardClient(read_address(process), timeout_s=60) as client:
            client.wait_until_ready(30)
            assert client.score([{"role": "user", "content": "Hi"}], ["yes"])[0].status == "ok"
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 0
    assert "loading" in errors
    assert "float32 on cpu, weights sha256:" in errors
    assert "client.score(" in errors
    assert "Traceback" not in errors


def test_a_health_watch_does_not_delay_the_end_of_the_server(pair: list[str]) -> None:
    with server_process(pair) as process, grpc.insecure_channel(read_address(process)) as channel:
        watch = HealthStub(channel).Watch(HealthCheckRequest())
        assert next(watch).status == HealthCheckResponse.SERVING
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=15) == 0  # drain_s is 20


def test_a_second_signal_ends_the_server_at_once_with_exit_code_1(pair: list[str], tmp_path: Path) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text("instruct: unset\nbase: unset\ndrain_s: 600\ncache_bytes: 0\nchat_template: lab\n")
    long_request = pb.ScoreRequest(prompt_token_ids=pb.TokenIds(ids=[0, 9]))
    long_request.completions.extend([pb.Completion(token_ids=pb.TokenIds(ids=[10] * 500))] * 1024)
    with server_process([str(config), *pair]) as process, grpc.insecure_channel(read_address(process)) as channel:
        watch = HealthStub(channel).Watch(HealthCheckRequest())
        assert next(watch).status == HealthCheckResponse.SERVING
        stub = RewardServiceStub(channel)  # type: ignore[no-untyped-call]
        call = stub.Score.future(long_request)
        stub.GetServerInfo(pb.GetServerInfoRequest())
        process.send_signal(signal.SIGTERM)
        assert next(watch).status == HealthCheckResponse.NOT_SERVING
        assert not call.done()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 1
    assert "second signal: ending the process now" in errors


def test_until_stdin_closes_ends_the_server_with_its_parent(pair: list[str]) -> None:
    with server_process([*pair, "--until-stdin-closes"]) as process:
        with RewardClient(read_address(process), timeout_s=60) as client:
            client.wait_until_ready(30)
        assert process.poll() is None
        process.communicate(timeout=30)
        assert process.returncode == 0


def test_a_missing_model_is_one_line_and_exit_code_2(pair: list[str]) -> None:
    with server_process([*pair[:2], "--base", "./no/such/model"]) as process:
        output, errors = process.communicate(timeout=START_TIMEOUT_S)
        assert process.returncode == 2
    assert output == ""
    assert "winnow: model folder './no/such/model' does not exist" in errors.splitlines()[-1]


def test_a_killed_engine_process_costs_only_the_batch_that_it_computes(pair: list[str]) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    # Seconds of work: no two completions have a common prefix that could be computed once.
    long_completions = np.random.default_rng(0).integers(6, 300, (512, 400)).tolist()
    with server_process(pair) as process, RewardClient(read_address(process), timeout_s=120) as client:
        expected = client.score(messages, ["yes"])[0].reward
        engines_pid = find_engines(process)
        cpu_s_before = cpu_seconds(engines_pid)
        with ThreadPoolExecutor() as threads:
            pending = threads.submit(client.score, [0, 9], long_completions)
            wait_until(
                lambda: cpu_seconds(engines_pid) > cpu_s_before + 0.5, "the computation of the batch", START_TIMEOUT_S
            )
            os.kill(engines_pid, signal.SIGKILL)
            with pytest.raises(ServerError, match="scoring failed"):
                pending.result(timeout=60)
        assert client.score(messages, ["yes"])[0].reward == expected  # from the cache, which the server holds
        assert client.score(messages, ["no"])[0].status == "ok"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0


def find_engines(process: "subprocess.Popen[str]") -> int:
    """Return the id of the process that computes: the larger one of the server's two children."""
    return max(children_of(process.pid), key=resident_pages)


@dataclass
class StartingServer:
    """A server process that writes its stdout and stderr to files."""

    process: "subprocess.Popen[str]"
    stdout: Path
    stderr: Path

    def has_child(self) -> bool:
        return len(children_of(self.process.pid)) > 0

    def has_engines(self) -> bool:
        """Tell whether the engines' process has started, after multiprocessing's resource tracker."""
        return len(children_of(self.process.pid)) > 1

    def is_importing_torch(self) -> bool:
        return self.has_engines() and "libtorch" in (proc_folder(find_engines(self.process)) / "maps").read_text()

    def is_loading(self) -> bool:
        return "loading" in self.stderr.read_text()

    def is_listening(self) -> bool:
        return "listening on" in self.stdout.read_text()


@pytest.mark.parametrize(
    "has_reached",
    [
        StartingServer.has_child,
        StartingServer.has_engines,
        StartingServer.is_importing_torch,
        StartingServer.is_loading,
        StartingServer.is_listening,
    ],
    ids=["first child", "engines' process", "import of torch", "loading", "listening"],
)
def test_an_interruption_at_each_stage_of_the_start_ends_the_server_quietly(
    pair: list[str], has_reached: Callable[[StartingServer], bool], tmp_path: Path
) -> None:
    """Like Ctrl-C in a terminal: each process of the group gets the signal, also those that are starting."""
    stdout = tmp_path / "stdout"
    stderr = tmp_path / "stderr"
    command = winnow_command("serve", *pair)
    with (
        stdout.open("w") as out,
        stderr.open("w") as err,
        subprocess.Popen(command, stdout=out, stderr=err, text=True, cwd=ROOT, start_new_session=True) as process,
    ):
        try:
            server = StartingServer(process, stdout, stderr)
            wait_until(lambda: has_reached(server), "this stage of the start", START_TIMEOUT_S)
            os.killpg(process.pid, signal.SIGINT)
            process.wait(timeout=START_TIMEOUT_S)
        finally:
            process.kill()
    assert "KeyboardInterrupt" not in stderr.read_text()
    expected_code = 130
    if server.is_listening():
        expected_code = 0
    assert process.returncode == expected_code


def test_callable_address_names_a_host_that_clients_can_reach() -> None:
    assert callable_address("0.0.0.0:50051") == f"{socket.gethostname()}:50051"
    assert callable_address("[::]:50051") == f"{socket.gethostname()}:50051"
    assert callable_address("127.0.0.1:50051") == "127.0.0.1:50051"
    assert callable_address("rewards.internal:1") == "rewards.internal:1"


def test_a_missing_tokenizer_is_found_before_the_models_are_loaded(pair: list[str], tmp_path: Path) -> None:
    base = shutil.copytree(pair[3], tmp_path / "base", ignore=shutil.ignore_patterns("tokenizer*"))
    with server_process([*pair[:2], "--base", str(base), *pair[4:]]) as process:
        _, errors = process.communicate(timeout=START_TIMEOUT_S)
        assert process.returncode == 1
    assert "loading" not in errors
    assert "no tokenizer could be loaded" in errors
