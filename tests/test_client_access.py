"""Connections of both clients: addresses, time limits, tokens and TLS."""

from pathlib import Path
from typing import Any

import grpc
import pytest

from reward_server.client import AsyncRewardClient, ConnectionSettings, RetryPolicy, RewardClient, read_token
from tests.both_clients import address_fixture, connect_fixture, service_fixture  # noqa: F401
from tests.certificates import Authority, mutual_tls_server
from tests.scripted_server import MESSAGES, ScriptedService
from winnow.errors import ServerError, UsageError


def test_the_bearer_token_is_sent_and_never_shown(
    connect: Any, service: ScriptedService, address: str, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("trainer s3cret\n")
    with connect(address, token=read_token(tmp_path / "token"), timeout_s=5) as client:
        client.score(MESSAGES, ["abc"])
        assert service.tokens == ["Bearer s3cret"]
        service.fail(grpc.StatusCode.UNAUTHENTICATED)
        with pytest.raises(ServerError) as caught:
            client.score(MESSAGES, ["abc"])
        assert "s3cret" not in repr(client) + repr(caught.value)
    with pytest.raises(UsageError) as refused:
        connect(address, token="s3cret with blanks")
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"address": ""}, "no address"),
        ({"address": "localhost"}, "'localhost' should be HOST:PORT"),
        ({"address": "localhost:"}, "'localhost:' should be HOST:PORT"),
        ({"address": ":50051"}, "':50051' should be HOST:PORT"),
        ({"address": "http://a:1"}, "'http://a:1' should be HOST:PORT"),
        ({"address": "a:1,b:99999"}, "'b:99999' should be HOST:PORT"),
        ({"address": "a:0"}, "'a:0' should be HOST:PORT, .*; the port should be from 1 to 65535"),
        ({"address": "::1:50051"}, "'::1:50051' should be HOST:PORT, .*; put brackets around an IPv6 address"),
        ({"address": None}, "address None should be HOST:PORT"),
        ({"address": "a:1", "timeout_s": float("nan")}, "timeout_s nan should be a number of seconds"),
        ({"address": "a:1", "timeout_s": float("inf")}, "timeout_s inf should be a number of seconds"),
        ({"address": "a:1", "timeout_s": 0}, "timeout_s 0 should be a number of seconds above 0"),
        ({"address": "a:1", "timeout_s": "5"}, "timeout_s '5' should be a number of seconds"),
        ({"address": "a:1", "tls_key": "k"}, "tls_certificate and tls_key together"),
        ({"address": "a:1", "tls_ca": "./nowhere.pem"}, "'./nowhere.pem' cannot be read"),
        ({"address": ConnectionSettings("a:1"), "token": "s3cret"}, "token and tls_.* are given twice"),
    ],
)
def test_connection_settings_that_cannot_work_are_refused(keywords: dict[str, Any], message: str) -> None:
    for kind in (RewardClient, AsyncRewardClient):
        with pytest.raises(UsageError, match=message):
            kind(**keywords)


@pytest.mark.parametrize("address", ["[::1]:1", "dns:///rewards.internal:1", "unix:/tmp/socket", "gpu-1_a.b:65535"])
def test_ipv6_numbers_and_names_of_grpc_are_addresses(address: str) -> None:
    with RewardClient(f"{address}, localhost:1") as client:
        assert client.address == f"{address},localhost:1"


def test_clients_take_connection_settings_in_place_of_the_address(
    connect: Any, service: ScriptedService, address: str
) -> None:
    with connect(ConnectionSettings(address, token="s3cret"), timeout_s=5) as client:
        assert client.score(MESSAGES, ["abc"])[0].reward == 3.0
        assert client.address == address
        assert "s3cret" not in repr(client)
    assert service.tokens == ["Bearer s3cret"]


def test_pem_files_that_cannot_be_used_are_refused_at_once(tmp_path: Path) -> None:
    noise = tmp_path / "noise.pem"
    noise.write_text("no certificate")
    authority = Authority(tmp_path)
    client_certificate, client_key = authority.certificate("client")
    _, stranger_key = authority.certificate("stranger")
    for kind in (RewardClient, AsyncRewardClient):
        with pytest.raises(UsageError, match=r"noise\.pem' holds no PEM certificate"):
            kind("a:1", tls_ca=noise)
        with pytest.raises(UsageError, match="are not a pair of PEM files"):
            kind("a:1", tls_certificate=client_certificate, tls_key=stranger_key)
    RewardClient("a:1", tls_certificate=client_certificate, tls_key=client_key).close()


def test_mutual_tls_admits_known_callers_only(connect: Any, service: ScriptedService, tmp_path: Path) -> None:
    server, known = mutual_tls_server(service, tmp_path)
    wrong_authority = {**known, "tls_ca": Authority(tmp_path, "stranger").path}
    with server as address:
        with connect(address, **known, timeout_s=10) as client:
            assert client.score(MESSAGES, ["abc"])[0].reward == 3.0
        for wrong in ({}, {"tls_ca": known["tls_ca"]}, wrong_authority):
            with (
                connect(address, timeout_s=5, retries=RetryPolicy(max_attempts=1), **wrong) as client,
                pytest.raises(ServerError, match="no reward server answers"),
            ):
                client.score(MESSAGES, ["abc"])
