"""How a client reaches its servers: addresses, TLS, a bearer token, and the channels' settings, for both clients.

"localhost:50051"                        one server
"gpu1:50051,gpu2:50051" or a list        several; each call goes to the least busy one (reward_server/client/retries.py)
"dns:///rewards.internal:50051"          every address behind a name, by gRPC's own round robin
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import grpc
from grpc_health.v1.health_pb2_grpc import HealthStub

from reward_server.certificates import File, read_authorities, read_file, read_pair
from reward_server.pb.reward_pb2_grpc import RewardServiceStub
from winnow.errors import UsageError

Address = str | Sequence[str]

OPTIONS: tuple[tuple[str, int | str], ...] = (
    # The server's own limits hold, and the client keeps to them (reward_server/client/requests.py).
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Retries are made in reward_server/client/retries.py: gRPC's own skip requests above its retry buffer, in silence.
    ("grpc.enable_retries", 0),
    ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
    ("grpc.initial_reconnect_backoff_ms", 100),
    # Also how long an address that swallows packets is given to connect, before another one is tried.
    ("grpc.min_reconnect_backoff_ms", 5000),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # A server that vanishes without a word during a call is noticed after the sum of both.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
)


# HOST:PORT, with a number in brackets for IPv6; and gRPC's own names of other kinds.
PLAIN = re.compile(r"(\[[0-9A-Fa-f:.%\w]+\]|[^\s:/\[\]]+):(\d{1,5})")
NAMED = re.compile(r"(dns|unix|unix-abstract|ipv4|ipv6|xds|vsock):\S+")

# The methods of a ServerStubs.
SCORE = attrgetter("rewards.Score")
SERVER_INFO = attrgetter("rewards.GetServerInfo")
CHECK_HEALTH = attrgetter("health.Check")


class ServerStubs:
    """A channel to one address, of either kind, and what is called over it."""

    def __init__(self, channel: Any) -> None:
        self.channel = channel
        self.rewards = RewardServiceStub(channel)  # type: ignore[no-untyped-call]
        self.health = HealthStub(channel)


@dataclass(frozen=True)
class ConnectionSettings:
    """The servers' addresses and what they ask of callers. Raises UsageError for what cannot be used.

    `tls_ca` is a PEM file of the authorities that are trusted; `tls_certificate` and `tls_key` are this caller's own,
    where the server asks for one (mutual TLS). With none of them the connection is plain text.
    """

    address: Address
    token: str | None = field(default=None, repr=False)
    tls_ca: File | None = None
    tls_certificate: File | None = None
    tls_key: File | None = None

    def __post_init__(self) -> None:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise UsageError("give tls_certificate and tls_key together: a certificate proves nothing without its key")
        if self.token is not None and (not self.token.isascii() or self.token.split() != [self.token]):
            raise UsageError("the token should be one word of ASCII characters, without spaces or a line's end")
        for address in self.addresses:
            if not _is_address(address):
                raise UsageError(f"address {address!r} should be HOST:PORT, like localhost:50051")

    @property
    def addresses(self) -> tuple[str, ...]:
        """Every address, at least one."""
        parts = self.address.split(",") if isinstance(self.address, str) else self.address
        if not isinstance(parts, Sequence) or not all(isinstance(part, str) for part in parts):
            raise UsageError(f"address {self.address!r} should be HOST:PORT, like localhost:50051, or a list of such")
        addresses = tuple(part.strip() for part in parts if part.strip())
        if not addresses:
            raise UsageError("no address of a reward server; give HOST:PORT, or several of them")
        return addresses

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What is sent with every call."""
        return () if self.token is None else (("authorization", f"Bearer {self.token}"),)

    def links(self, grpc_like: Any) -> list[ServerStubs]:
        """A link to each address; `grpc_like` is grpc or grpc.aio. Raises UsageError."""
        credentials = self.credentials()
        if credentials is None:
            return [ServerStubs(grpc_like.insecure_channel(one, options=OPTIONS)) for one in self.addresses]
        return [ServerStubs(grpc_like.secure_channel(one, credentials, options=OPTIONS)) for one in self.addresses]

    def credentials(self) -> grpc.ChannelCredentials | None:
        """What TLS needs; None for plain text. Raises UsageError for a file that cannot be used."""
        if self.tls_ca is None and self.tls_certificate is None:
            return None
        authorities = None if self.tls_ca is None else read_authorities(self.tls_ca, "tls_ca")
        if self.tls_certificate is None or self.tls_key is None:
            return grpc.ssl_channel_credentials(authorities)
        certificate, key = read_pair(self.tls_certificate, self.tls_key, ("tls_certificate", "tls_key"))
        return grpc.ssl_channel_credentials(authorities, key, certificate)


def open_connection_settings(
    address: Address,
    token_file: File | None = None,
    tls_ca: File | None = None,
    tls_certificate: File | None = None,
    tls_key: File | None = None,
) -> ConnectionSettings:
    """As ConnectionSettings, with the token from a file. Raises UsageError."""
    token = None if token_file is None else read_token(token_file)
    return ConnectionSettings(address, token, tls_ca, tls_certificate, tls_key)


def _is_address(address: str) -> bool:
    plain = PLAIN.fullmatch(address)
    return (plain is not None and 0 < int(plain[2]) < 65536) or NAMED.fullmatch(address) is not None


def read_token(path: File) -> str:
    """The token in a file that holds it alone or as `NAME TOKEN`. Raises UsageError, which never shows it."""
    words = read_file(path, "token file").decode(errors="replace").split()
    if len(words) not in (1, 2):
        raise UsageError(f"token file {str(path)!r} should hold one line, TOKEN or NAME TOKEN, not {len(words)} words")
    return words[-1]
