"""Clients and proxies: servers on this machine are called directly, and errors of other servers name the proxy."""

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from reward_server.client import DeadlineError, RewardClient
from reward_server.client.proxies import is_local, proxy_setting
from reward_server.client.retries import Failure, error_of
from sampler.managed_server import ManagedServer, reward_client, wait_for_server
from tests.adapter_calls import post_at_once, sample
from tests.both_clients import address_fixture, connect_fixture, service_fixture  # noqa: F401
from tests.scripted_server import MESSAGES, NO_SERVER, QUICK
from tests.served import tiny_serve_config
from winnow.config import parse_config
from winnow.errors import ServerError
from winnow.proxies import http_proxy_setting
from winnow.run_config import RewardConfig

CLOSED_PROXY = f"http://user:secret@{NO_SERVER}"
VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy", "all_proxy", "no_grpc_proxy", "no_proxy")
# An address of the range for documentation, which no machine has.
FAR = "192.0.2.1:50051"


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "localhost:{}", "dns:///localhost:{}", "ipv4:127.0.0.1:{}"])
@pytest.mark.parametrize("name", ["grpc_proxy", "https_proxy", "http_proxy"])
def test_a_server_on_loopback_is_called_directly(
    connect: Any, address: str, monkeypatch: pytest.MonkeyPatch, name: str, form: str
) -> None:
    monkeypatch.setenv(name, CLOSED_PROXY)
    local = form.format(address.rpartition(":")[2])
    with connect(local, timeout_s=10, retries=QUICK) as client:
        assert client.score(MESSAGES, ["abc"])[0].reward == 3.0


def test_the_error_of_a_far_server_names_the_proxy_without_credentials(
    connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", CLOSED_PROXY)
    with connect(FAR, timeout_s=10, retries=QUICK) as client, pytest.raises(ServerError) as caught:
        client.score(MESSAGES, ["abc"])
    assert "no reward server answers" in str(caught.value)
    assert f"http_proxy=http://{NO_SERVER}: if it should not, add the host to no_proxy" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.fixture
def silent_proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Set http_proxy to a proxy that takes connections and never responds; return its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = f"127.0.0.1:{listener.getsockname()[1]}"
        monkeypatch.setenv("http_proxy", f"http://user:secret@{proxy}")
        yield proxy


@pytest.mark.parametrize(
    "call", [lambda client: client.score(MESSAGES, ["abc"]), lambda client: client.wait_until_ready(0.3)]
)
def test_the_deadline_error_of_a_far_server_names_the_proxy(
    connect: Any, silent_proxy: str, call: Callable[[Any], object]
) -> None:
    with connect(FAR, timeout_s=0.3, retries=QUICK) as client, pytest.raises(DeadlineError) as caught:
        call(client)
    assert f"within 0.3 s; raise timeout_s, or send fewer completions at a time; {through(silent_proxy)}" in str(
        caught.value
    )
    assert "secret" not in str(caught.value)


def test_the_gateway_s_error_of_a_far_server_names_the_proxy(silent_proxy: str) -> None:
    response = post_at_once(FAR, [sample("a", "x")], timeout_s=0.3)[0]
    assert response.status_code == 504
    assert through(silent_proxy) in response.json()["error"]["message"]


def test_an_error_that_the_proxy_may_have_made_names_the_proxy(silent_proxy: str) -> None:
    failure = Failure(grpc.StatusCode.PERMISSION_DENIED, "Received http2 header with status: 403")
    assert through(silent_proxy) in str(error_of(failure, FAR, 1.0))


def through(proxy: str) -> str:
    return f"the connection goes through the proxy of http_proxy=http://{proxy}: if it should not"


def test_the_error_of_a_local_server_names_no_proxy(connect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", CLOSED_PROXY)
    with connect(NO_SERVER, timeout_s=2, retries=QUICK) as client, pytest.raises(ServerError) as caught:
        client.score(MESSAGES, ["abc"])
    assert "proxy" not in str(caught.value)


@pytest.mark.parametrize(
    ("variables", "setting"),
    [
        ({}, None),
        ({"https_proxy": "http://a:1", "http_proxy": "http://b:2"}, "https_proxy=http://a:1"),
        ({"grpc_proxy": "", "http_proxy": "http://b:2"}, None),
        ({"http_proxy": "https://b:2"}, None),
        ({"http_proxy": "b:2"}, None),
        ({"http_proxy": "http://[b"}, None),
        ({"http_proxy": "http://b:2", "no_proxy": "x.org, 2.1"}, None),
        ({"http_proxy": "http://b:2", "no_proxy": "192.0.2.0/24"}, None),
        ({"http_proxy": "http://b:2", "no_proxy": "192.0.3.0/24"}, "http_proxy=http://b:2"),
        ({"http_proxy": "http://b:2", "no_proxy": "192.0.2.1", "no_grpc_proxy": ""}, "http_proxy=http://b:2"),
    ],
)
def test_the_proxy_setting_follows_grpcs_rules(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], setting: str | None
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert proxy_setting(FAR) == setting


@pytest.mark.parametrize(
    ("variables", "setting"),
    [
        ({}, None),
        ({"http_proxy": "http://b:2", "all_proxy": "http://c:3"}, "all_proxy=http://c:3"),
        ({"https_proxy": "http://u:p@a:1/", "http_proxy": "http://b:2"}, "https_proxy=http://a:1/"),
        ({"HTTPS_PROXY": "u:p@a:1"}, "HTTPS_PROXY=a:1"),
        ({"HTTPS_PROXY": "http://a:1", "https_proxy": "http://b:2"}, "https_proxy=http://b:2"),
        ({"HTTPS_PROXY": "http://a:1", "https_proxy": ""}, None),
        ({"https_proxy": "http://a:1", "no_proxy": "x.org, 192.0.2.1"}, None),
        ({"https_proxy": "http://a:1", "NO_PROXY": "*"}, None),
        ({"https_proxy": "http://a:1", "no_proxy": "92.0.2.1"}, "https_proxy=http://a:1"),
    ],
)
def test_the_http_proxy_setting_follows_urllib_s_rules(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], setting: str | None
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert http_proxy_setting("https://192.0.2.1/v1") == setting


@pytest.mark.parametrize("url", ["http://localhost:1/v1", "http://[::1]:1", "http://127.0.0.1", "https:///v1"])
def test_a_url_of_this_machine_has_no_proxy(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("all_proxy", CLOSED_PROXY)
    assert http_proxy_setting(url) is None


def test_is_local_reads_the_names_that_grpc_resolves() -> None:
    local = ("unix:/run/a.sock", "unix-abstract:a", "dns://9.9.9.9/127.0.0.1:1", "dns:localhost", "ipv6:[::1]:1")
    assert all(is_local(address) for address in (*local, "ipv4:127.0.0.1:1,127.0.0.2:1"))
    assert not any(is_local(address) for address in (FAR, f"dns:///{FAR}", f"ipv4:127.0.0.1:1,{FAR}"))


def test_a_run_reaches_the_server_that_it_starts_and_tells_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("https_proxy", CLOSED_PROXY)
    server = tiny_serve_config(tmp_path).model_dump(mode="json", exclude_unset=True)
    config = parse_config({"server": server}, RewardConfig, "test")
    with reward_client(config, tmp_path) as client:
        assert client.score(MESSAGES, ["yes"])[0].status == "ok"
    lines = capsys.readouterr().err.splitlines()
    assert lines[-2:] == [
        f"starting a reward server; it loads its models first (log: {tmp_path / 'server.log'})",
        f"waiting for the reward server at {client.address} (log: {tmp_path / 'server.log'})",
    ]


def test_the_wait_ends_at_once_when_the_managed_server_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log_path = tmp_path / "server.log"
    log_path.write_text("loading\nout of memory\n")
    command = [sys.executable, "-c", ""]
    start = time.monotonic()
    with subprocess.Popen(command, text=True) as process, RewardClient(NO_SERVER) as client:
        server = ManagedServer(process, NO_SERVER, log_path)
        with pytest.raises(ServerError, match=r"ended before it was ready: out of memory \(log: .*server\.log\)"):
            wait_for_server(server, client, timeout_s=1800)
    assert time.monotonic() - start < 60
    assert f"waiting for the reward server at {NO_SERVER} (log: {log_path})" in capsys.readouterr().err
