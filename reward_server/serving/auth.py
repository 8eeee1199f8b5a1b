"""Authentication of callers: TLS, client certificates, bearer tokens; and the check of the addresses to listen on.

    listen beyond loopback    needs mutual TLS, or a token file and TLS; else refused, unless allow_insecure
    metrics beyond loopback   refused, because they are plain HTTP, unless allow_insecure

A client has the first of these names that exists: the name of its token; the common name of its certificate; its host
with the name that it sends in the metadata `winnow-client`; its connection. The names separate clients in the fair
queue (reward_server/scheduling/fair_queue.py) and appear in the log.
"""

import hashlib
import hmac
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import grpc

from reward_server.certificates import read_authorities, read_file, read_pair
from winnow.addresses import is_loopback, parse_listen_address
from winnow.errors import UsageError
from winnow.serve_config import ServeConfig, TlsConfig

HEALTH_PREFIX = "/grpc.health.v1.Health/"
SCHEME = "bearer "
CLIENT_KEY = "winnow-client"
CALLS_REMEDY = "set tls and token_file, or tls with client_ca; or listen on 127.0.0.1"
METRICS_REMEDY = "listen on 127.0.0.1, where a collector on this machine reads them"

Metadata = Iterable[tuple[str, str | bytes]]

log = logging.getLogger(__name__)


class BearerTokens:
    """Bearer tokens and their names, from (name, token) pairs; only digests of the tokens are kept."""

    def __init__(self, named_tokens: Sequence[tuple[str, str]]) -> None:
        self._named_digests = [(name, _digest(token)) for name, token in named_tokens]

    def name_of(self, metadata: Metadata) -> str | None:
        """Return the name of the token in `authorization: Bearer TOKEN`, or None if it is missing or unknown.

        The digest is compared with every known digest, in constant time each. So the duration does not reveal how
        close a guess is.
        """
        digest = _digest(_bearer_token(metadata))
        name_of_digest = None
        for name, known_digest in self._named_digests:
            if hmac.compare_digest(known_digest, digest):
                name_of_digest = name
        return name_of_digest


class TokenInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc ships no types
    """An interceptor that refuses calls without a known token; the health service stays open for probes."""

    def __init__(self, tokens: BearerTokens, on_refused: Callable[[], None]) -> None:
        self._tokens = tokens
        self._on_refused = on_refused

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any) -> Any:
        """Return the method's handler, or a handler that refuses the call."""
        is_open = handler_call_details.method.startswith(HEALTH_PREFIX)
        if is_open or self._tokens.name_of(handler_call_details.invocation_metadata or ()) is not None:
            return await continuation(handler_call_details)
        self._on_refused()
        return grpc.stream_stream_rpc_method_handler(_unauthenticated)


async def _unauthenticated(request_iterator: Any, context: Any) -> None:
    await context.abort(
        grpc.StatusCode.UNAUTHENTICATED, "send a token of this server in the metadata `authorization: Bearer TOKEN`"
    )


def read_bearer_tokens(path: str) -> BearerTokens:
    """Read a file of `NAME TOKEN` lines; `#` starts a comment line. Raises UsageError, which never shows a token."""
    try:
        text = read_file(path, "token_file").decode()
    except UnicodeDecodeError:
        raise UsageError(
            f"token_file {path!r} cannot be read (it is not text); write one token a line as NAME TOKEN"
        ) from None
    named_tokens: list[tuple[str, str]] = []
    for line_number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2:
            raise UsageError(f"token_file {path!r}, line {line_number}: should be NAME TOKEN, has {len(words)} words")
        named_tokens.append((words[0], words[1]))
    if not named_tokens:
        raise UsageError(f"token_file {path!r} holds no token; write one a line as NAME TOKEN")
    return BearerTokens(named_tokens)


def tls_credentials(tls: TlsConfig) -> grpc.ServerCredentials:
    """Read the PEM files of a server. Raises UsageError for a missing or malformed file, or a wrong key."""
    certificate, key = read_pair(tls.certificate, tls.key, ("tls.certificate", "tls.key"))
    if tls.client_ca is None:
        return grpc.ssl_server_credentials([(key, certificate)])
    authorities = read_authorities(tls.client_ca, "tls.client_ca")
    return grpc.ssl_server_credentials([(key, certificate)], authorities, require_client_auth=True)


@dataclass(frozen=True)
class ServerAuth:
    """The credentials of the server's port (None: plain text), and its callers' bearer tokens (None: none needed)."""

    credentials: grpc.ServerCredentials | None
    tokens: BearerTokens | None


def load_auth(config: ServeConfig) -> ServerAuth:
    """Read the TLS and token files of a config. Raises UsageError for a file that cannot be used."""
    credentials = None if config.tls is None else tls_credentials(config.tls)
    tokens = None if config.token_file is None else read_bearer_tokens(config.token_file)
    return ServerAuth(credentials, tokens)


def check_exposure(config: ServeConfig) -> None:
    """Raise UsageError if anyone on the network could call or read tokens in transit; warn if the config allows it."""
    for problem in _problems(config):
        if not config.allow_insecure:
            raise UsageError(f"{problem}; or set allow_insecure: true, if the whole network is trusted")
        log.warning("INSECURE, allowed by allow_insecure: %s", problem)


def client_name(context: Any, tokens: BearerTokens | None) -> str:
    """Return the name of the client that makes a call."""
    metadata = context.invocation_metadata() or ()
    if tokens is not None:
        name = tokens.name_of(metadata)
        if name is not None:
            return name
    common_names = context.auth_context().get("x509_common_name")
    if common_names:
        return str(common_names[0].decode(errors="replace"))
    connection = unquote(context.peer())
    client = _metadata_text(metadata, CLIENT_KEY)
    if client is None:
        return connection
    host = connection.rpartition(":")[0]
    return f"{host}/{client}"


def _problems(config: ServeConfig) -> list[str]:
    """Return a problem and its remedy, as one text, for each address that is open to other machines unprotected."""
    has_mutual_tls = config.tls is not None and config.tls.client_ca is not None
    exposure = f"listen {config.listen} is open to other machines"
    problems = []
    if not is_loopback(parse_listen_address(config.listen).host) and not has_mutual_tls:
        if config.token_file is None:
            problems.append(f"{exposure}, and anyone could call; {CALLS_REMEDY}")
        elif config.tls is None:
            problems.append(f"{exposure}, and tokens would travel in plain text; {CALLS_REMEDY}")
    if config.metrics_listen is not None:
        metrics_address = parse_listen_address(config.metrics_listen, "metrics_listen")
        if not is_loopback(metrics_address.host):
            problems.append(f"metrics_listen {config.metrics_listen} is open to other machines; {METRICS_REMEDY}")
    return problems


def _bearer_token(metadata: Metadata) -> str:
    """Return the token of `authorization: Bearer TOKEN`; an empty text, which no token equals, if there is none."""
    text = _metadata_text(metadata, "authorization") or ""
    if not text.lower().startswith(SCHEME):
        return ""
    return text[len(SCHEME) :].strip()


def _metadata_text(metadata: Metadata, key: str) -> str | None:
    """Return the first value of a metadata key as text, or None."""
    for name, value in metadata:
        if name != key:
            continue
        if isinstance(value, bytes):
            return value.decode(errors="replace")
        return value
    return None


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
