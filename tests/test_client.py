"""Both clients: light to import, alike, shared between threads, and as their docs show them."""

import inspect
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from reward_server.client import AsyncRewardClient, RewardClient, RewardOptions
from reward_server.client.requests import OptionKeywords
from tests.both_clients import address_fixture, connect_fixture, service_fixture  # noqa: F401
from tests.scripted_server import MESSAGES
from winnow.errors import UsageError

ROOT = Path(__file__).parent.parent


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


def test_both_clients_have_one_surface() -> None:
    names = [name for name in vars(RewardClient) if not name.startswith("_")]
    assert names == [name for name in vars(AsyncRewardClient) if not name.startswith("_")]
    for name in ("__init__", "score", "server_info", "wait_until_ready", "close", "score_many"):
        ours, theirs = (inspect.signature(getattr(kind, name)) for kind in (RewardClient, AsyncRewardClient))
        assert list(ours.parameters) == list(theirs.parameters), name


def test_the_keywords_are_the_fields_of_the_options() -> None:
    assert get_type_hints(OptionKeywords) == get_type_hints(RewardOptions)


def test_a_closed_client_says_so(connect: Any, address: str) -> None:
    with connect(address) as client:
        assert client.score(MESSAGES, ["abc"])[0].reward == 3
        if isinstance(client, RewardClient):
            client.close()
        else:
            client._runner.run(client._client.close())
        with pytest.raises(UsageError, match="this client is closed"):
            client.score(MESSAGES, ["abc"])


def test_one_client_may_be_shared_between_threads(address: str) -> None:
    answers: dict[int, list[float]] = {}
    with RewardClient(address, timeout_s=10) as client:

        def ask(number: int) -> None:
            answers[number] = [client.score(MESSAGES, ["x" * number])[0].reward or 0.0 for _ in range(20)]

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(1, 9)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == {number: [float(number)] * 20 for number in range(1, 9)}


@pytest.mark.parametrize("index", [0, 1])
def test_the_examples_of_the_docs_run(address: str, index: int, capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "clients.md").read_text()
    code = re.findall(r"```python\n(.*?)```", page, re.S)[index]
    exec(re.sub(r"localhost:50051|gpu1:50051,gpu2:50051", address, code), {"__name__": "example"})
    assert capsys.readouterr().out.splitlines()[0] in ("[8.0, 8.0]", "2.0")
