"""Authentication over real gRPC: bearer tokens, TLS, client certificates, and configs that a server refuses."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from reward_server.client import RewardClient
from reward_server.pb import reward_pb2 as pb
from reward_server.pb.reward_pb2_grpc import RewardServiceStub
from reward_server.scoring.model_pair import Pair
from reward_server.serving.auth import check_exposure, load_auth, read_bearer_tokens
from reward_server.serving.server import serve
from sampler.managed_server import reward_client
from sampler.score import score_completions
from tests.certificates import Authority
from tests.completions import stored_completion
from tests.pairs import open_pair
from tests.served import ServerThread, tiny_serve_config
from winnow.config import parse_config
from winnow.errors import ServerError, UsageError
from winnow.records import Message, make_prompt
from winnow.run_config import RewardConfig
from winnow.serve_config import ServeConfig, TlsConfig

ALICES_TOKEN = "0123456789abcdef-one"
BOBS_TOKEN = "0123456789abcdef-two"
HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki"))


def tls_config(authority: Authority, **changes: str) -> TlsConfig:
    """Return the TLS files of a server."""
    certificate, key = authority.certificate("server")
    return TlsConfig(**{"certificate": str(certificate), "key": str(key), **changes})


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ServeConfig:
    return tiny_serve_config(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def pair(config: ServeConfig) -> Pair:
    return open_pair(config)


@pytest.fixture
def token_file(tmp_path: Path) -> str:
    path = tmp_path / "tokens"
    path.write_text(f"# who may call\nalice {ALICES_TOKEN}\n\nbob {BOBS_TOKEN}\n")
    return str(path)


@pytest.fixture
def guarded(config: ServeConfig, pair: Pair, token_file: str) -> Iterator[ServerThread]:
    with ServerThread(config.model_copy(update={"token_file": token_file}), pair) as server:
        yield server


@pytest.mark.parametrize("token", [ALICES_TOKEN, BOBS_TOKEN])
def test_a_known_token_opens_every_method(guarded: ServerThread, token: str) -> None:
    with RewardClient(guarded.address, timeout_s=60, token=token) as client:
        assert client.score(HI, ["yes"])[0].status == "ok"
    with grpc.insecure_channel(guarded.address) as channel:
        stub: Any = RewardServiceStub(channel)  # type: ignore[no-untyped-call]
        bearer = [("authorization", f"Bearer {token}")]
        assert list(stub.ScoreStream(iter([]), timeout=30, metadata=bearer)) == []


@pytest.mark.parametrize(
    "header",
    ["", f"Bearer {ALICES_TOKEN}x", f"Bearer {ALICES_TOKEN[:-1]}", f"Basic {ALICES_TOKEN}", "Bearer ", ALICES_TOKEN],
)
def test_every_method_refuses_calls_without_a_known_token_as_unauthenticated(
    guarded: ServerThread, header: str
) -> None:
    metadata = []
    if header:
        metadata.append(("authorization", header))
    with grpc.insecure_channel(guarded.address) as channel:
        stub: Any = RewardServiceStub(channel)  # type: ignore[no-untyped-call]
        calls: list[Callable[[], Any]] = [
            lambda: stub.Score(pb.ScoreRequest(), timeout=30, metadata=metadata),
            lambda: stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=30, metadata=metadata),
            lambda: list(stub.ScoreStream(iter([]), timeout=30, metadata=metadata)),
            ProtoReflectionDescriptorDatabase(channel).get_services,
        ]
        for call in calls:
            with pytest.raises(grpc.RpcError) as caught:
                call()
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
            assert ALICES_TOKEN not in str(caught.value)
    assert guarded.metric("winnow_refused_total", reason="unauthenticated") == len(calls)


def test_health_needs_no_token(guarded: ServerThread) -> None:
    with grpc.insecure_channel(guarded.address) as channel:
        response = HealthStub(channel).Check(HealthCheckRequest(), timeout=30)
    assert response.status == HealthCheckResponse.SERVING


def test_a_client_has_the_name_of_its_token(guarded: ServerThread, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="winnow.calls")
    with RewardClient(guarded.address, timeout_s=60, token=BOBS_TOKEN) as client:
        client.score(HI, ["yes"])
    assert '"client": "bob"' in caplog.text
    assert BOBS_TOKEN not in caplog.text


def test_tls_serves_clients_that_trust_its_authority(config: ServeConfig, pair: Pair, authority: Authority) -> None:
    secure = config.model_copy(update={"tls": tls_config(authority)})
    with ServerThread(secure, pair) as server:
        with RewardClient(server.address, timeout_s=60, tls_ca=authority.path) as client:
            assert client.score(HI, ["yes"])[0].status == "ok"
        with RewardClient(server.address, timeout_s=3) as plain, pytest.raises(ServerError):
            plain.server_info()


def test_mutual_tls_names_clients_by_their_certificates(
    config: ServeConfig, pair: Pair, authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="winnow.calls")
    mutual = tls_config(authority, client_ca=str(authority.path))
    carols_certificate, carols_key = authority.certificate("carol")
    strangers_certificate, strangers_key = Authority(tmp_path, "stranger").certificate("mallory")
    with ServerThread(config.model_copy(update={"tls": mutual}), pair) as server:
        with RewardClient(
            server.address,
            timeout_s=60,
            tls_ca=authority.path,
            tls_certificate=carols_certificate,
            tls_key=carols_key,
        ) as client:
            assert client.score(HI, ["yes"])[0].status == "ok"
        anonymous = RewardClient(server.address, timeout_s=3, tls_ca=authority.path)
        stranger = RewardClient(
            server.address,
            timeout_s=3,
            tls_ca=authority.path,
            tls_certificate=strangers_certificate,
            tls_key=strangers_key,
        )
        for client in (anonymous, stranger):
            with client, pytest.raises(ServerError):
                client.server_info()
    assert '"client": "carol"' in caplog.text


def test_the_score_stage_uses_a_server_with_mutual_tls(
    config: ServeConfig, pair: Pair, authority: Authority, tmp_path: Path
) -> None:
    mutual = tls_config(authority, client_ca=str(authority.path))
    client_certificate, client_key = authority.certificate("sampler")
    prompt = make_prompt("test", (Message(role="user", content="Hi"),))
    completion = stored_completion(prompt.prompt_id, 0, "yes")
    with ServerThread(config.model_copy(update={"tls": mutual}), pair) as server:
        anonymous = {"address": server.address, "tls_ca": str(authority.path), "timeout_s": 3}
        known = {**anonymous, "tls_certificate": str(client_certificate), "tls_key": str(client_key), "timeout_s": 60}
        reward_config = parse_config(known, RewardConfig, "test")
        with reward_client(reward_config, tmp_path) as client:
            prompts = {prompt.prompt_id: prompt}
            rewards = list(score_completions(client, reward_config, prompts, [completion]))
        with (
            reward_client(parse_config(anonymous, RewardConfig, "test"), tmp_path) as client,
            pytest.raises(ServerError),
        ):
            client.server_info()
    assert len(rewards) == 1
    assert [reward.status for reward in rewards[0]] == ["ok"]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({}, "anyone could call"),
        ({"token_file": "tokens"}, "tokens would travel in plain text"),
        ({"tls": TlsConfig(certificate="c", key="k")}, "anyone could call"),
    ],
)
@pytest.mark.parametrize("listen", ["0.0.0.0:50051", "[::]:50051", "192.0.2.1:50051"])
def test_listening_beyond_loopback_is_refused_with_the_remedies(
    config: ServeConfig, listen: str, changes: dict[str, Any], problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    exposed = config.model_copy(update={"listen": listen, **changes})
    with pytest.raises(UsageError, match=f"{problem}.*allow_insecure: true"):
        check_exposure(exposed)
    check_exposure(exposed.model_copy(update={"allow_insecure": True}))
    assert "INSECURE" in caplog.text


@pytest.mark.parametrize(
    "changes",
    [
        {"listen": "0.0.0.0:50051", "tls": TlsConfig(certificate="c", key="k", client_ca="a")},
        {"listen": "0.0.0.0:50051", "tls": TlsConfig(certificate="c", key="k"), "token_file": "tokens"},
        {"listen": "localhost:50051"},
        {"listen": "127.0.0.1:50051", "token_file": "tokens", "metrics_listen": "127.0.0.1:9090"},
    ],
)
def test_protected_addresses_are_accepted(config: ServeConfig, changes: dict[str, Any]) -> None:
    check_exposure(config.model_copy(update=changes))


def test_metrics_beyond_loopback_are_refused_even_with_mutual_tls(config: ServeConfig) -> None:
    tls = TlsConfig(certificate="c", key="k", client_ca="a")
    with pytest.raises(UsageError, match=r"metrics_listen 0\.0\.0\.0:9090 is open"):
        check_exposure(config.model_copy(update={"metrics_listen": "0.0.0.0:9090", "tls": tls}))


def test_serve_refuses_an_open_address_before_it_loads_models(config: ServeConfig) -> None:
    absent = config.model_copy(update={"listen": "0.0.0.0:0", "instruct": "./no/such/model"})
    with pytest.raises(UsageError, match="anyone could call"):
        serve(absent)


@pytest.mark.parametrize(
    ("content", "error"),
    [("", "holds no token"), ("# none\n", "holds no token"), (f"\n{ALICES_TOKEN}\n", "line 2: should be NAME TOKEN")],
)
def test_an_unusable_token_file_is_an_error_of_one_line_without_the_token(
    tmp_path: Path, content: str, error: str
) -> None:
    path = tmp_path / "tokens"
    path.write_text(content)
    with pytest.raises(UsageError, match=error) as caught:
        read_bearer_tokens(str(path))
    assert ALICES_TOKEN not in str(caught.value)


def test_unusable_certificates_are_errors_of_one_line(
    config: ServeConfig, authority: Authority, tmp_path: Path
) -> None:
    _, strangers_key = authority.certificate("stranger")
    noise = tmp_path / "noise"
    noise.write_text("no certificate")
    wrong = {
        "tls.key '/no/such/file' cannot be read": tls_config(authority, key="/no/such/file"),
        "are not a pair": tls_config(authority, key=str(strangers_key)),
        "not a pair of PEM files": tls_config(authority, certificate=str(noise)),
        "holds no PEM certificate": tls_config(authority, client_ca=str(noise)),
    }
    for error, tls in wrong.items():
        with pytest.raises(UsageError, match=error) as caught:
            load_auth(config.model_copy(update={"tls": tls}))
        assert "\n" not in str(caught.value)


def test_a_message_beyond_the_limit_is_refused_without_push_back(config: ServeConfig, pair: Pair) -> None:
    with (
        ServerThread(config.model_copy(update={"max_message_bytes": 1000}), pair) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        stub: Any = RewardServiceStub(channel)  # type: ignore[no-untyped-call]
        assert stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=30).max_message_bytes == 1000
        with pytest.raises(grpc.RpcError) as caught:
            stub.Score(pb.ScoreRequest(request_id="x" * 2000), timeout=30)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert not caught.value.trailing_metadata()


def test_metrics_are_served_over_http(config: ServeConfig, pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with ServerThread(config.model_copy(update={"metrics_listen": "127.0.0.1:0"}), pair) as server:
        with RewardClient(server.address, timeout_s=60) as client:
            client.score(HI, ["yes", ""])
        line = next(record.getMessage() for record in caplog.records if "/metrics" in record.getMessage())
        with urlopen(line.removeprefix("metrics at "), timeout=30) as response:
            page = response.read().decode()
    for expected in (
        'winnow_calls_total{code="OK",method="Score"} 1.0',
        'winnow_completions_total{status="ok"} 1.0',
        'winnow_completions_total{status="empty_completion"} 1.0',
        "winnow_queue_tokens 0.0",
        "winnow_queue_groups 0.0",
        "winnow_batch_tokens_count 1.0",
        "winnow_compute_seconds_count 1.0",
        "winnow_cache_misses 2.0",
    ):
        assert expected in page
