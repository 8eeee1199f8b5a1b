"""HTTP proxies in error messages: which variable sends a URL through a proxy, and how it is named.

The names are those that urllib and httpx read, in lower or upper case; lower case counts first:

    http_proxy, https_proxy, all_proxy    URL of the proxy for the URL's scheme, else for all; empty: none
    no_proxy                              hosts and ends of host names without a proxy; * stands for all

gRPC has rules of its own: reward_server/client/proxies.py.
"""

import os
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from winnow.addresses import is_loopback


def http_proxy_setting(url: str) -> str | None:
    """Return the variable and the proxy, like `https_proxy=http://proxy:3128`, that a URL goes through; None: direct.

    The proxy is shown without credentials. Servers on this machine are called directly.
    """
    parts = urlsplit(url)
    proxies = getproxies()
    kinds = [kind for kind in (parts.scheme, "all") if proxies.get(kind)]
    if not kinds or not parts.hostname:
        return None
    if proxy_bypass(parts.hostname) or is_loopback(parts.hostname):
        return None
    return f"{_variable(kinds[0])}={without_credentials(proxies[kinds[0]])}"


def proxy_remedy(setting: str | None) -> str:
    """Return the end of an error's message that names the proxy; an empty text for a direct connection."""
    if setting is None:
        return ""
    return f"; the connection goes through the proxy of {setting}: if it should not, add the host to no_proxy"


def without_credentials(url: str) -> str:
    """Return a URL without the name and password that may stand before its host.

    >>> without_credentials("http://user:secret@proxy:3128")
    'http://proxy:3128'
    """
    scheme, separator, rest = url.rpartition("://")
    authority, slash, path = rest.partition("/")
    return f"{scheme}{separator}{authority.rpartition('@')[2]}{slash}{path}"


def _variable(kind: str) -> str:
    """Return the name of the variable that holds the proxy for a scheme, as the user has written it."""
    name = f"{kind}_proxy"
    for variable in (name, *os.environ):
        if variable.lower() == name and os.environ.get(variable):
            return variable
    return name
