"""HOST:PORT addresses: their form, those of loopback, and sockets that listen on them."""

import pytest

from winnow.addresses import HostPort, is_loopback, open_listener, parse_address
from winnow.errors import UsageError

EXAMPLE = "127.0.0.1:50051"


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:50051", HostPort("127.0.0.1", 50051)),
        ("localhost:0", HostPort("localhost", 0)),
        ("gpu-1_a.b:65535", HostPort("gpu-1_a.b", 65535)),
        ("[::1]:1", HostPort("::1", 1)),
        ("[fe80::1%eth0]:1", HostPort("fe80::1%eth0", 1)),
    ],
)
def test_parse_address_and_str_are_inverse(text: str, address: HostPort) -> None:
    assert parse_address(text, "listen", EXAMPLE) == address
    assert str(address) == text


@pytest.mark.parametrize("text", ["", "localhost", "a:", ":50051", "http://a:1", "a:1 ", "a:b", "a:-1", "[::1]"])
def test_parse_address_shows_an_example(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_address(text, "listen", EXAMPLE)
    assert str(caught.value) == f"listen {text!r} should be HOST:PORT, like 127.0.0.1:50051"


def test_parse_address_names_the_remedy_for_ports_and_ipv6() -> None:
    with pytest.raises(UsageError, match=r"metrics_listen 'a:65536' .*; the port should be from 0 to 65535"):
        parse_address("a:65536", "metrics_listen", EXAMPLE)
    with pytest.raises(UsageError, match=r"address 'a:0' .*; the port should be from 1 to 65535"):
        parse_address("a:0", "address", EXAMPLE, min_port=1)
    with pytest.raises(UsageError, match=r"listen '::1:50051' .*; put brackets around an IPv6 address, like \[::1\]"):
        parse_address("::1:50051", "listen", EXAMPLE)


def test_is_loopback_by_number_and_name() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "nowhere.invalid", "a..b"))


def test_open_listener_takes_a_free_port_and_refuses_a_taken_one() -> None:
    with open_listener(HostPort("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert port > 0
        with pytest.raises(UsageError, match=rf"cannot listen on 127\.0\.0\.1:{port} .*take another port, or port 0"):
            open_listener(HostPort("127.0.0.1", port))
    with pytest.raises(UsageError, match=r"cannot listen on nowhere\.invalid:1 "):
        open_listener(HostPort("nowhere.invalid", 1))
