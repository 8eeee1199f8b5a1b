"""Both clients' way in: addresses, time limits, tokens and TLS."""

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from reward_server.client import AsyncRewardClient, RetryPolicy, RewardClient, read_token
from tests.both_clients import address_fixture, connect_fixture, service_fixture  # noqa: F401
from tests.scripted_server import MESSAGES, ScriptedService, scripted_server
from winnow.errors import ServerError, UsageError


def test_the_token_is_sent_and_never_shown(
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
        ({"address": None}, "address None should be HOST:PORT"),
        ({"address": "a:1", "timeout_s": float("nan")}, "timeout_s nan should be a number of seconds"),
        ({"address": "a:1", "timeout_s": float("inf")}, "timeout_s inf should be a number of seconds"),
        ({"address": "a:1", "timeout_s": 0}, "timeout_s 0 should be a number of seconds above 0"),
        ({"address": "a:1", "timeout_s": "5"}, "timeout_s '5' should be a number of seconds"),
        ({"address": "a:1", "tls_key": "k"}, "tls_certificate and tls_key together"),
        ({"address": "a:1", "tls_ca": "./nowhere.pem"}, "'./nowhere.pem' cannot be read"),
    ],
)
def test_access_that_cannot_work_is_refused(keywords: dict[str, Any], message: str) -> None:
    for kind in (RewardClient, AsyncRewardClient):
        with pytest.raises(UsageError, match=message):
            kind(**keywords)


@pytest.mark.parametrize("address", ["[::1]:1", "dns:///rewards.internal:1", "unix:/tmp/socket", "gpu-1_a.b:65535"])
def test_addresses_of_other_kinds_are_taken(address: str) -> None:
    with RewardClient(f"{address}, localhost:1") as client:
        assert client.address == f"{address},localhost:1"


def test_pem_files_that_cannot_be_used_are_refused_at_once(tmp_path: Path) -> None:
    noise = tmp_path / "noise.pem"
    noise.write_text("no certificate")
    mine, key = certificate(tmp_path, "mine")
    _, other = certificate(tmp_path, "other")
    for kind in (RewardClient, AsyncRewardClient):
        with pytest.raises(UsageError, match=r"noise\.pem' holds no PEM certificate"):
            kind("a:1", tls_ca=noise)
        with pytest.raises(UsageError, match="are no pair of PEM files"):
            kind("a:1", tls_certificate=mine, tls_key=other)
    RewardClient("a:1", tls_certificate=mine, tls_key=key).close()


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A self-signed certificate of 127.0.0.1 and its key, as PEM files."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / f"{name}.pem", folder / f"{name}.key"
    paths[0].write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths


def test_mutual_tls_lets_known_callers_in_and_no_others(connect: Any, service: ScriptedService, tmp_path: Path) -> None:
    (server, server_key), (mine, my_key) = certificate(tmp_path, "server"), certificate(tmp_path, "mine")
    credentials = grpc.ssl_server_credentials(
        [(server_key.read_bytes(), server.read_bytes())], mine.read_bytes(), require_client_auth=True
    )
    with scripted_server(service, credentials=credentials) as address:
        with connect(address, tls_ca=server, tls_certificate=mine, tls_key=my_key, timeout_s=10) as client:
            assert client.score(MESSAGES, ["abc"])[0].reward == 3.0
        for wrong in ({}, {"tls_ca": server}, {"tls_ca": mine, "tls_certificate": mine, "tls_key": my_key}):
            with (
                connect(address, timeout_s=5, retries=RetryPolicy(max_attempts=1), **wrong) as client,
                pytest.raises(ServerError, match="no reward server answers"),
            ):
                client.score(MESSAGES, ["abc"])
