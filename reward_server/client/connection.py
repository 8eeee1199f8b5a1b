"""Connections to reward servers, for both clients: addresses, TLS, bearer token, and the settings of gRPC's channels.

"localhost:50051"                     one server
"gpu1:50051,gpu2:50051" or a list     several; each call goes to the least busy server (reward_server/client/retries.py)
"dns:///rewards.internal:50051"       every address behind a name, by gRPC's own round robin
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import grpc
from grpc_health.v1.health_pb2_grpc import HealthStub

from reward_server.certificates import FilePath, read_authorities, read_file, read_pair
from reward_server.client.proxies import must_skip_proxy
from reward_server.pb.reward_pb2_grpc import RewardServiceStub
from winnow.addresses import parse_address
from winnow.errors import UsageError

Address = str | Sequence[str]
"""HOST:PORT of a reward server; several with commas or as a list."""

EXAMPLE_ADDRESS = "localhost:50051"
# Names that gRPC resolves itself.
GRPC_NAME = re.compile(r"(dns|unix|unix-abstract|ipv4|ipv6|xds|vsock):\S+")

CHANNEL_OPTIONS: tuple[tuple[str, int | str], ...] = (
    # No limits here: the client keeps its messages within the server's limits (reward_server/client/requests.py).
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # The client retries by itself (reward_server/client/retries.py). gRPC's own retries silently leave out requests
    # that are larger than its retry buffer.
    ("grpc.enable_retries", 0),
    ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
    ("grpc.initial_reconnect_backoff_ms", 100),
    # Also the connect timeout for an address that drops packets.
    ("grpc.min_reconnect_backoff_ms", 5000),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # The client notices a server that vanishes during a call after the sum of both.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
)


class ServerStubs:
    """A channel to one server, of grpc or grpc.aio, and the methods that a client calls over it."""

    def __init__(self, channel: Any) -> None:
        rewards = RewardServiceStub(channel)  # type: ignore[no-untyped-call]
        self.channel = channel
        self.score = rewards.Score
        self.get_server_info = rewards.GetServerInfo
        self.check_health = HealthStub(channel).Check


@dataclass(frozen=True)
class ConnectionSettings:
    """The addresses of reward servers and the caller's credentials. Raises UsageError for a value that cannot be used.

        address           HOST:PORT, several with commas or as a list
        token             bearer token that is sent with every call; not part of the repr
        tls_ca            PEM file of the trusted authorities; turns TLS on
        tls_certificate   PEM file of the caller's certificate, for servers that ask for one (mutual TLS)
        tls_key           PEM file of the certificate's private key

    Without TLS files the connection is plain text. The files are read when a client is made.
    """

    address: Address
    token: str | None = field(default=None, repr=False)
    tls_ca: FilePath | None = None
    tls_certificate: FilePath | None = None
    tls_key: FilePath | None = None

    def __post_init__(self) -> None:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise UsageError("give tls_certificate and tls_key together: a certificate proves nothing without its key")
        if self.token is not None and (not self.token.isascii() or self.token.split() != [self.token]):
            raise UsageError("the token should be one word of ASCII characters, without spaces or a line's end")
        for address in self.addresses:
            if not GRPC_NAME.fullmatch(address):
                parse_address(address, "address", EXAMPLE_ADDRESS, min_port=1)

    @property
    def addresses(self) -> tuple[str, ...]:
        """Every address, at least one."""
        texts = self.address
        if isinstance(texts, str):
            texts = texts.split(",")
        if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
            raise UsageError(
                f"address {self.address!r} should be HOST:PORT, like {EXAMPLE_ADDRESS}, or a list of addresses"
            )
        addresses = tuple(text.strip() for text in texts if text.strip())
        if not addresses:
            raise UsageError("no address of a reward server; give HOST:PORT, or several of them")
        return addresses

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Metadata of every call: the bearer token."""
        if self.token is None:
            return ()
        return (("authorization", f"Bearer {self.token}"),)

    def credentials(self) -> grpc.ChannelCredentials | None:
        """Read the TLS files; None for plain text. Raises UsageError for a file that cannot be used."""
        if self.tls_ca is None and self.tls_certificate is None:
            return None
        authorities = None
        if self.tls_ca is not None:
            authorities = read_authorities(self.tls_ca, "tls_ca")
        if self.tls_certificate is None or self.tls_key is None:
            return grpc.ssl_channel_credentials(authorities)
        certificate, key = read_pair(self.tls_certificate, self.tls_key, ("tls_certificate", "tls_key"))
        return grpc.ssl_channel_credentials(authorities, key, certificate)


def connection_settings(
    address: Address | ConnectionSettings,
    token: str | None,
    tls_ca: FilePath | None,
    tls_certificate: FilePath | None,
    tls_key: FilePath | None,
) -> ConnectionSettings:
    """Return the settings of a client from its arguments. Raises UsageError for values that are set twice."""
    if not isinstance(address, ConnectionSettings):
        return ConnectionSettings(address, token, tls_ca, tls_certificate, tls_key)
    if any(value is not None for value in (token, tls_ca, tls_certificate, tls_key)):
        raise UsageError("token and tls_* are given twice; set them in the ConnectionSettings and leave them out here")
    return address


def open_connection_settings(
    address: Address,
    token_file: FilePath | None = None,
    tls_ca: FilePath | None = None,
    tls_certificate: FilePath | None = None,
    tls_key: FilePath | None = None,
) -> ConnectionSettings:
    """Return ConnectionSettings with the token from a file, which holds TOKEN or NAME TOKEN.

    The other arguments are as in ConnectionSettings. Raises UsageError for a file or value that cannot be used.
    """
    token = None if token_file is None else read_token(token_file)
    return ConnectionSettings(address, token, tls_ca, tls_certificate, tls_key)


def open_stubs(
    grpc_module: ModuleType, settings: ConnectionSettings, credentials: grpc.ChannelCredentials | None
) -> list[ServerStubs]:
    """Return the stubs of each server; `grpc_module` is grpc or grpc.aio. The channels connect at the first call."""
    stubs = []
    for address in settings.addresses:
        options = channel_options(address)
        if credentials is None:
            channel = grpc_module.insecure_channel(address, options=options)
        else:
            channel = grpc_module.secure_channel(address, credentials, options=options)
        stubs.append(ServerStubs(channel))
    return stubs


def channel_options(address: str) -> tuple[tuple[str, int | str], ...]:
    """Return the settings of the channel to an address. A channel to this machine never goes through a proxy."""
    if must_skip_proxy(address):
        return (*CHANNEL_OPTIONS, ("grpc.enable_http_proxy", 0))
    return CHANNEL_OPTIONS


def read_token(path: FilePath) -> str:
    """Read the token of a file that holds TOKEN or NAME TOKEN. Raises UsageError, which never shows the token."""
    words = read_file(path, "token file").decode(errors="replace").split()
    if len(words) not in (1, 2):
        raise UsageError(f"token file {str(path)!r} should hold one line, TOKEN or NAME TOKEN, not {len(words)} words")
    return words[-1]
