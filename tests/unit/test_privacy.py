"""Which connections may carry passwords and tokens."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.testing import MemoryReactorClock, StringTransport

from taskd.config import ConnectionLimits
from taskd.server.listening import open_endpoint
from taskd.server.privacy import is_private
from taskd.server.tls import ServerTls
from tests.certificates import authority
from tests.unit.stage import Stage
from tests.unit.tls_pair import Careless, Pair

PROXIES = (ip_network("10.1.0.0/16"), ip_network("fd00::/8"))


def peer(host: str) -> Any:
    """Its address."""
    kind = IPv6Address if ":" in host else IPv4Address
    return kind("TCP", host, 40000)


@pytest.mark.parametrize(
    ("host", "private"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("10.1.2.3", True),
        ("::ffff:10.1.2.3", True),
        ("fd12::1", True),
        ("10.2.0.1", False),
        ("192.0.2.1", False),
        ("::ffff:192.0.2.1", False),
        ("2001:db8::1", False),
        ("fe80::1%eth0", False),
    ],
)
def test_plain_connections(host: str, private: bool) -> None:
    assert is_private(StringTransport(peerAddress=peer(host)), PROXIES) is private


def test_without_trusted_networks() -> None:
    assert not is_private(StringTransport(peerAddress=peer("10.1.2.3")))


def test_a_unix_socket() -> None:
    assert is_private(StringTransport(peerAddress=UNIXAddress("/run/taskd")))


def test_an_address_that_says_nothing() -> None:
    assert not is_private(StringTransport(peerAddress=object()), PROXIES)


def is_private_behind(proxy: Any, header: bytes, description: str = "haproxy:tcp:5000", **limits: Any) -> bool:
    """Whether a server takes a password from a client of this proxy, which sends this header."""
    stage = Stage(limits=ConnectionLimits(**limits))
    reactor = MemoryReactorClock()
    open_endpoint(reactor, description, stage.lines, stage.lines.limits)()
    factory: Any = (reactor.unixServers if "unix:" in description else reactor.tcpServers)[-1][1]
    transport: Any = StringTransport(peerAddress=proxy)
    transport.protocol = factory.buildProtocol(proxy)
    transport.protocol.makeConnection(transport)
    transport.protocol.dataReceived(header)
    transport.protocol.dataReceived(b'{"action":"login","username":"ana","password":"correct horse"}\n')
    stage.run_pending()
    answer = transport.value()
    stage.close()
    assert b'"ok":false' in answer
    return b"not encrypted" not in answer


def v1(client: str) -> bytes:
    """A header of version 1 that names this client."""
    family, server = ("TCP6", "::1") if ":" in client else ("TCP4", "127.0.0.1")
    return f"PROXY {family} {client} {server} 40000 5000\r\n".encode()


@pytest.mark.parametrize(
    ("proxy", "header", "private"),
    [
        ("127.0.0.1", v1("192.0.2.1"), False),  # a proxy of this machine, and we do not know whether it uses TLS
        ("::1", v1("2001:db8::1"), False),
        ("127.0.0.1", v1("127.0.0.1"), True),
        ("127.0.0.1", v1("::ffff:127.0.0.1"), True),
        ("127.0.0.1", b"PROXY UNKNOWN\r\n", False),  # the client may be anywhere
        ("127.0.0.1", b"\r\n\r\n\0\r\nQUIT\n\x21\0\0\0", False),
        ("10.1.0.5", v1("192.0.2.1"), True),  # a trusted one
        ("192.0.2.9", v1("127.0.0.1"), True),  # what the header says is checked nowhere else either
        ("192.0.2.9", v1("192.0.2.1"), False),
    ],
)
def test_behind_a_proxy_that_tells_its_client(proxy: str, header: bytes, private: bool) -> None:
    """An endpoint ``haproxy:``."""
    assert is_private_behind(peer(proxy), header, trusted_proxies=PROXIES) is private


def test_a_proxy_that_connects_to_a_unix_socket() -> None:
    balancer = UNIXAddress("")
    assert not is_private_behind(balancer, v1("192.0.2.1"), "haproxy:unix:/run/x")
    assert is_private_behind(balancer, v1("127.0.0.1"), "haproxy:unix:/run/x")


def test_tls(tmp_path: Path) -> None:
    pair = Pair(Careless(), ServerTls(*authority().issue("localhost").write(tmp_path)))
    assert is_private(pair.server.transport)
