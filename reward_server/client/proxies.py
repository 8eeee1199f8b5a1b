"""HTTP proxies of gRPC's channels: which servers are reached directly, and which variable sends a channel elsewhere.

gRPC's core reads the environment itself when a channel is made; the names are in lower case:

    grpc_proxy, https_proxy, http_proxy   URL of a proxy, http://HOST:PORT; the first that is set counts, empty: none
    no_grpc_proxy, no_proxy               ends of host names, addresses and subnets without proxy; the first counts

Channels to this machine ignore these variables: see `must_skip_proxy`.
"""

import ipaddress
import os
from urllib.parse import urlsplit

from winnow.addresses import is_loopback
from winnow.proxies import without_credentials

PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
EXCEPTION_VARIABLES = ("no_grpc_proxy", "no_proxy")
SOCKET_SCHEMES = ("unix", "unix-abstract", "vsock")
NAME_SCHEMES = ("dns", "ipv4", "ipv6", "xds")


def must_skip_proxy(address: str) -> bool:
    """Tell whether a proxy is set, but the address stays on this machine. Without a proxy no name is resolved here."""
    return _first_set(PROXY_VARIABLES) is not None and is_local(address)


def is_local(address: str) -> bool:
    """Tell whether a client's address stays on this machine: a socket, or only loopback hosts."""
    if address.partition(":")[0] in SOCKET_SCHEMES:
        return True
    return all(is_loopback(host) for host in _hosts(address))


def proxy_setting(address: str) -> str | None:
    """Return the variable and the URL of the proxy, like `http_proxy=http://proxy:3128`, that an address goes through.

    The URL is shown without credentials. None stands for a direct connection.
    """
    name = _first_set(PROXY_VARIABLES)
    if name is None:
        return None
    url = _shown_url(os.environ[name])
    if url is None or _is_exempt(address) or is_local(address):
        return None
    return f"{name}={url}"


def _hosts(address: str) -> list[str]:
    """Return the hosts of HOST:PORT, or of a name like `dns:///HOST:PORT` or `ipv4:HOST:PORT,HOST:PORT`."""
    scheme, _, rest = address.partition(":")
    if scheme not in NAME_SCHEMES or rest.isdecimal():  # a host may be called dns
        rest = address
    return [_host(text) for text in rest.rpartition("/")[2].split(",")]


def _host(text: str) -> str:
    """Return the host of HOST:PORT or HOST, without brackets."""
    if text.startswith("["):
        return text[1:].partition("]")[0]
    if text.count(":") > 1:  # an IPv6 address without a port
        return text
    return text.partition(":")[0]


def _first_set(names: tuple[str, ...]) -> str | None:
    """Return the first of these variables that is set, even if it is empty."""
    for name in names:
        if name in os.environ:
            return name
    return None


def _shown_url(url: str) -> str | None:
    """Return the URL of a proxy without credentials; None for a URL that gRPC does not use."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    if parts.scheme != "http" or not parts.netloc.rpartition("@")[2]:
        return None
    return without_credentials(f"http://{parts.netloc}")


def _is_exempt(address: str) -> bool:
    """Tell whether the variables of exceptions name the host, by gRPC's rules."""
    name = _first_set(EXCEPTION_VARIABLES)
    if name is None:
        return False
    entries = [entry.strip() for entry in os.environ[name].split(",") if entry.strip()]
    host = _hosts(address)[0]
    return any(_is_match(host, entry) for entry in entries)


def _is_match(host: str, entry: str) -> bool:
    """Tell whether an entry is the end of the host's name, or a subnet that holds its address."""
    if host.lower().endswith(entry.lower()):
        return True
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return False
