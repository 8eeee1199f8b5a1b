"""Who may call: TLS, certificates of clients, bearer tokens; and the refusal to listen where anyone could.

    beyond loopback   mutual TLS, or a token file and TLS; else refused, unless allow_insecure
    metrics           plain HTTP: loopback only, unless allow_insecure

A client's name is that of its token, else its certificate's common name, else its connection, or its host with what it
calls itself in the metadata `winnow-client`. Names decide whose turn it is (fair_queue.py) and stand in the log.
"""

import hashlib
import hmac
import ipaddress
import logging
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any
from urllib.parse import unquote

import grpc

from reward_server.certificates import read_authorities, read_file, read_pair
from winnow.errors import UsageError
from winnow.serve_config import ServeConfig, TlsConfig

HEALTH_PREFIX = "/grpc.health.v1.Health/"
SCHEME = "bearer "
CLIENT_KEY = "winnow-client"
CALLERS_WAYS_OUT = "set tls and token_file, or tls with client_ca; or listen on 127.0.0.1"
METRICS_WAYS_OUT = "listen on 127.0.0.1, where a collector on this machine reads them"

Metadata = Iterable[tuple[str, str | bytes]]

log = logging.getLogger(__name__)


class Tokens:
    """Bearer tokens and their names; only digests are kept."""

    def __init__(self, named: Sequence[tuple[str, str]]) -> None:
        self._named = [(name, _digest(token)) for name, token in named]

    def name_of(self, metadata: Metadata) -> str | None:
        """The name of the token in `authorization: Bearer TOKEN`; None where it is missing or unknown.

        Every token is compared, each in constant time: how long it takes says nothing of how near a guess is.
        """
        given = _digest(_bearer_token(metadata))
        found = None
        for name, digest in self._named:
            if hmac.compare_digest(digest, given):
                found = name
        return found


class TokenInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc ships no types
    """Refuses every call without a known token, streams included; health stays open for probes."""

    def __init__(self, tokens: Tokens, on_refused: Callable[[], None]) -> None:
        self._tokens = tokens
        self._on_refused = on_refused

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any) -> Any:
        """The method's own handler, or one that refuses."""
        is_open = handler_call_details.method.startswith(HEALTH_PREFIX)
        if is_open or self._tokens.name_of(handler_call_details.invocation_metadata or ()) is not None:
            return await continuation(handler_call_details)
        self._on_refused()
        return grpc.stream_stream_rpc_method_handler(_unauthenticated)


async def _unauthenticated(request_iterator: Any, context: Any) -> None:
    await context.abort(
        grpc.StatusCode.UNAUTHENTICATED, "send a token of this server in the metadata `authorization: Bearer TOKEN`"
    )


def read_tokens(path: str) -> Tokens:
    """The tokens of a file of `NAME TOKEN` lines. Raises UsageError, which never shows a token."""
    try:
        text = read_file(path, "token_file").decode()
    except UnicodeDecodeError:
        raise UsageError(
            f"token_file {path!r} cannot be read (is no text); write a token a line as NAME TOKEN"
        ) from None
    lines = [line.split() for line in text.splitlines()]
    named = [(number, words) for number, words in enumerate(lines, 1) if words and not words[0].startswith("#")]
    for number, words in named:
        if len(words) != 2:
            raise UsageError(f"token_file {path!r}, line {number}: should be NAME TOKEN, has {len(words)} words")
    if not named:
        raise UsageError(f"token_file {path!r} holds no token; write one a line as NAME TOKEN")
    return Tokens([(name, token) for _, (name, token) in named])


def tls_credentials(tls: TlsConfig) -> grpc.ServerCredentials:
    """What the port needs. Raises UsageError for files that are missing, malformed or do not fit together."""
    certificate, key = read_pair(tls.certificate, tls.key, ("tls.certificate", "tls.key"))
    authority = None if tls.client_ca is None else read_authorities(tls.client_ca, "tls.client_ca")
    return grpc.ssl_server_credentials([(key, certificate)], authority, authority is not None)


def check_exposure(config: ServeConfig) -> None:
    """Raise UsageError where anyone on the network could call, or listen in on tokens, unless that is asked for."""
    for problem in _problems(config):
        if not config.allow_insecure:
            raise UsageError(f"{problem}, or, where the whole network is trusted, set allow_insecure: true")
        log.warning("INSECURE, as allow_insecure asks: %s", problem)


def client_name(context: Any, tokens: Tokens | None) -> str:
    """Whose call it is."""
    metadata = context.invocation_metadata() or ()
    if tokens is not None and (name := tokens.name_of(metadata)) is not None:
        return name
    if names := context.auth_context().get("x509_common_name"):
        return str(names[0].decode(errors="replace"))
    peer = unquote(context.peer())
    own = next((value for key, value in metadata if key == CLIENT_KEY), None)
    return peer if own is None else f"{peer.rpartition(':')[0]}/{own}"


def is_loopback(address: str) -> bool:
    """Whether HOST:PORT is reachable from this machine only."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host or None, None)}
    except OSError:
        return False
    return all(ipaddress.ip_address(str(one).partition("%")[0]).is_loopback for one in found)


def _problems(config: ServeConfig) -> list[str]:
    """What is open to others, and the ways out."""
    has_mutual_tls = config.tls is not None and config.tls.client_ca is not None
    where = f"listen {config.listen} is open to other machines"
    problems = []
    if not is_loopback(config.listen) and not has_mutual_tls:
        if config.token_file is None:
            problems.append(f"{where}, and anyone could call; {CALLERS_WAYS_OUT}")
        elif config.tls is None:
            problems.append(f"{where}, and tokens would travel in plain text; {CALLERS_WAYS_OUT}")
    if config.metrics_listen is not None and not is_loopback(config.metrics_listen):
        problems.append(f"metrics_listen {config.metrics_listen} is open to other machines; {METRICS_WAYS_OUT}")
    return problems


def _bearer_token(metadata: Metadata) -> str:
    value = next((value for key, value in metadata if key == "authorization"), "")
    text = value.decode(errors="replace") if isinstance(value, bytes) else value
    return text[len(SCHEME) :].strip() if text.lower().startswith(SCHEME) else ""


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
