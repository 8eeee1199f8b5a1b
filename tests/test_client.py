"""Both clients: light to import, with the same methods, shared between threads, and as their docs show them."""

import inspect
import re
import subprocess
import sys
import threading
from typing import Any

import pytest

from reward_server import client as public
from reward_server.client import AsyncRewardClient, RewardClient
from reward_server.pb import reward_pb2 as pb
from reward_server.protocol import SERVICE_NAME
from tests.both_clients import address_fixture, connect_fixture, service_fixture  # noqa: F401
from tests.processes import ROOT
from tests.scripted_server import MESSAGES
from winnow.errors import UsageError


def test_importing_the_client_needs_the_base_install_only() -> None:
    absent = [
        "torch",
        "transformers",
        "safetensors",
        "pyarrow",
        "grpc_reflection",
        "jinja2",
        "tokenizers",
        "grpc_tools",
        "prometheus_client",
        "starlette",
        "uvicorn",
        "trl",
    ]
    imports = "import reward_server.client, reward_server.adapters.trl, reward_server.adapters.verl"
    imports += ", reward_server.adapters.http"
    program = f"import sys; sys.modules.update(dict.fromkeys({absent})); {imports}"
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, cwd=ROOT)


def test_the_public_names_are_exported() -> None:
    errors = {"WinnowError", "UsageError", "ServerError", "ServerBusyError", "DeadlineError", "AuthError"}
    assert errors <= set(public.__all__)
    assert sorted(set(public.__all__)) == sorted(public.__all__)
    assert all(hasattr(public, name) for name in public.__all__)


def test_help_explains_every_public_name() -> None:
    for name in public.__all__:
        member = getattr(public, name)
        if not (inspect.isclass(member) or inspect.isfunction(member)):  # a type alias has no docstring of its own
            assert re.search(rf"^    {name} +\S", public.__doc__ or "", re.MULTILINE), name
            continue
        explanation = member.__doc__
        assert explanation, name
        assert not explanation.startswith(f"{name}("), f"{name} has only the docstring that dataclasses make"
        for field in getattr(member, "__dataclass_fields__", {}):
            assert field in explanation, f"{name}.{field}"


def test_the_service_name_is_that_of_the_proto() -> None:
    assert pb.DESCRIPTOR.services_by_name["RewardService"].full_name == SERVICE_NAME


def test_both_clients_have_the_same_methods() -> None:
    names = [name for name in vars(RewardClient) if not name.startswith("_")]
    assert names == [name for name in vars(AsyncRewardClient) if not name.startswith("_")]
    for name in ("__init__", "score", "server_info", "wait_until_ready", "close", "score_many"):
        blocking = inspect.signature(getattr(RewardClient, name))
        asynchronous = inspect.signature(getattr(AsyncRewardClient, name))
        assert list(blocking.parameters) == list(asynchronous.parameters), name


def test_a_closed_client_raises_a_usage_error(connect: Any, address: str) -> None:
    with connect(address) as client:
        assert client.score(MESSAGES, ["abc"])[0].reward == 3
        if isinstance(client, RewardClient):
            client.close()
        else:
            client._runner.run(client._client.close())
        with pytest.raises(UsageError, match="this client is closed"):
            client.score(MESSAGES, ["abc"])


def test_one_client_may_be_shared_between_threads(address: str) -> None:
    rewards: dict[int, list[float | None]] = {}
    with RewardClient(address, timeout_s=10) as client:

        def score_repeatedly(length: int) -> None:
            rewards[length] = [client.score(MESSAGES, ["x" * length])[0].reward for _ in range(20)]

        threads = [threading.Thread(target=score_repeatedly, args=(length,)) for length in range(1, 9)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert set(rewards) == set(range(1, 9))
    assert all(rewards[length] == [float(length)] * 20 for length in rewards)


@pytest.mark.parametrize("index", [0, 1])
def test_the_examples_of_the_docs_run(address: str, index: int, capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "clients.md").read_text()
    code = re.findall(r"```python\n(.*?)```", page, re.S)[index]
    program = re.sub(r"localhost:50051|gpu1:50051,gpu2:50051", address, code)
    exec(program, {"__name__": "example"})
    assert capsys.readouterr().out.splitlines()[0] in ("[8.0, 8.0]", "2.0")
