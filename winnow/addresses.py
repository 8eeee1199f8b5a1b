"""HOST:PORT addresses: the only place that parses them, decides what is loopback, and opens a listening socket.

"127.0.0.1:50051"     "localhost:50051"     "[::1]:50051"     "127.0.0.1:0" (listen on a free port)
"""

import ipaddress
import re
import socket
from dataclasses import dataclass

from winnow.errors import UsageError

MAX_PORT = 65535
HOST_PORT = re.compile(r"(?P<host>\[[\w:.%-]+\]|[^\s:/\[\]]+):(?P<port>[0-9]+)")
UNBRACKETED_IPV6 = re.compile(r"[0-9A-Fa-f]*:[0-9A-Fa-f:.]*:[0-9]+")


@dataclass(frozen=True)
class HostPort:
    """A host, which is a name or an IP address (IPv6 without brackets), and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        if ":" in self.host:
            return f"[{self.host}]:{self.port}"
        return f"{self.host}:{self.port}"


def parse_address(text: str, name: str, example: str, min_port: int = 0) -> HostPort:
    """Parse HOST:PORT. Raises UsageError, which calls the address by `name` and shows an `example`.

    Port 0 means any free port. A server can listen on it, but nobody can call it: clients set `min_port` to 1.

    >>> parse_address("[::1]:50051", "listen", "127.0.0.1:50051")
    HostPort(host='::1', port=50051)
    """
    expected = f"{name} {text!r} should be HOST:PORT, like {example}"
    match = HOST_PORT.fullmatch(text)
    if match is None and UNBRACKETED_IPV6.fullmatch(text):
        raise UsageError(f"{expected}; put brackets around an IPv6 address, like [::1]:50051")
    if match is None:
        raise UsageError(expected)
    port = int(match["port"])
    if not min_port <= port <= MAX_PORT:
        raise UsageError(f"{expected}; the port should be from {min_port} to {MAX_PORT}")
    return HostPort(match["host"].strip("[]"), port)


def parse_listen_address(text: str, key: str = "listen") -> HostPort:
    """Parse the HOST:PORT of a server's config key. Raises UsageError."""
    return parse_address(text, key, "127.0.0.1:50051")


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach `host`: every IP address that it resolves to is a loopback address.

    A name that does not resolve is not loopback.
    """
    try:
        resolved = socket.getaddrinfo(host, None)
    except (OSError, UnicodeError):
        return False
    for *_, socket_address in resolved:
        ip_text = str(socket_address[0]).partition("%")[0]  # without the zone of an IPv6 address
        if not ipaddress.ip_address(ip_text).is_loopback:
            return False
    return True


def open_listener(address: HostPort) -> socket.socket:
    """Return a socket that listens at `address`. Raises UsageError if that fails."""
    family = socket.AF_INET
    if ":" in address.host:
        family = socket.AF_INET6
    try:
        return socket.create_server((address.host, address.port), family=family)
    except (OSError, UnicodeError) as error:
        raise listen_error(address, str(error)) from error


def listen_error(address: HostPort, reason: str) -> UsageError:
    """Return the error for an address at which a server cannot listen."""
    return UsageError(f"cannot listen on {address} ({reason}); take another port, or port 0 for a free one")
