"""Which connections may carry passwords and tokens."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import StringTransport
from twisted.protocols.haproxy._wrapper import HAProxyWrappingFactory

from taskd.server.privacy import is_private
from taskd.server.tls import ServerTls
from tests.certificates import authority
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


@pytest.mark.parametrize(
    ("proxy", "client", "private"),
    [
        ("127.0.0.1", "192.0.2.1", False),  # a proxy of this machine, and we do not know whether it uses TLS
        ("127.0.0.1", "127.0.0.1", True),
        ("10.1.0.5", "192.0.2.1", True),  # a trusted one
        ("192.0.2.9", "127.0.0.1", True),  # what the header says is checked nowhere else either
    ],
)
def test_behind_a_proxy_that_tells_its_client(proxy: str, client: str, private: bool) -> None:
    """An endpoint ``haproxy:``."""
    inner = Protocol()
    outer = HAProxyWrappingFactory(Factory.forProtocol(lambda: inner)).buildProtocol(peer(proxy))
    outer.makeConnection(StringTransport(peerAddress=peer(proxy)))
    outer.dataReceived(f"PROXY TCP4 {client} 127.0.0.1 40000 5000\r\n".encode())
    assert is_private(inner.transport, PROXIES) is private


def test_tls(tmp_path: Path) -> None:
    pair = Pair(Careless(), ServerTls(*authority().issue("localhost").write(tmp_path)))
    assert is_private(pair.server.transport)
