"""taskd.server.listening and proxy_header: what every port has, and who may name another address."""

from __future__ import annotations

import struct
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from twisted.internet.address import IPv4Address
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import capturedLogs

from taskd.config import ConnectionLimits
from taskd.server.listening import open_endpoint
from taskd.server.proxy_header import HEADER_SECONDS, MAX_WAITING, BadHeader, Header, parse
from taskd.server.tap import max_connections
from tests.unit.stage import StageCase, Transport

V2 = b"\r\n\r\n\0\r\nQUIT\n"
BALANCER = "10.0.0.5"
STRANGER = "192.0.2.66"
V1 = b"PROXY TCP4 203.0.113.7 10.0.0.9 40000 5000\r\n"
HEALTH = b'{"action":"health"}\n'


def v2(source: str, port: int = 40_000, command: int = 0x21, more: bytes = b"") -> bytes:
    """A header of version 2."""
    packed = ip_address(source).packed
    body = packed + packed + struct.pack("!HH", port, 5000) + more
    return V2 + struct.pack("!BBH", command, 0x11 if len(packed) == 4 else 0x21, len(body)) + body


@pytest.mark.parametrize(
    ("data", "source"),
    [
        (V1, "203.0.113.7"),
        (b"PROXY TCP6 2001:db8::7 2001:db8::9 40000 5000\r\n", "2001:db8::7"),
        (b"PROXY UNKNOWN\r\n", None),
        (b"PROXY UNKNOWN whatever the balancer says\r\n", None),
        (v2("203.0.113.7"), "203.0.113.7"),
        (v2("2001:db8::7"), "2001:db8::7"),
        (v2("203.0.113.7", more=b"\x03\0\x04abcd"), "203.0.113.7"),
        (v2("203.0.113.7", command=0x20), None),
        (V2 + b"\x20\0\0\0", None),
        (V2 + b"\x21\x31\0\xd8" + b"\0" * 216, None),
    ],
)
def test_headers(data: bytes, source: str | None) -> None:
    for size in range(1, len(data)):
        assert parse(data[:size]) is None
    for rest in (b"", HEALTH, b"\r\n"):
        header = parse(data + rest)
        assert isinstance(header, Header) and header.size == len(data)
        assert header.source == (None if source is None else ip_address(source))


@pytest.mark.parametrize(
    "data",
    [
        HEALTH,
        b"GET / HTTP/1.1\r\n",
        b"PROXY\r\n",
        b"PROXY TCP4\r\n",
        b"PROXY TCP5 203.0.113.7 10.0.0.9 1 2\r\n",
        b"PROXY TCP4 203.0.113.700 10.0.0.9 1 2\r\n",
        b"PROXY TCP4 2001:db8::7 10.0.0.9 1 2\r\n",
        b"PROXY TCP4 203.0.113.7 10.0.0.9 x 2\r\n",
        b"PROXY TCP4  203.0.113.7 10.0.0.9 1 2\r\n",
        b"PROXY TCP4 \xb2 10.0.0.9 1 2\r\n",
        b"PROXY TCP4 " + b"1" * 200,
        b"PROXY UNKNOWN " + b"1" * 200 + b"\r\n",
        V2 + b"\x11\x11\0\x0c" + b"\1" * 12,
        V2 + b"\x22\x11\0\x0c" + b"\1" * 12,
        V2 + b"\x21\x11\0\x0b" + b"\1" * 11,
        V2 + b"\x21\x21\0\x0c" + b"\1" * 12,
        V2 + b"\x21\x11\xff\xff",
    ],
)
def test_bad_headers(data: bytes) -> None:
    with pytest.raises(BadHeader):
        parse(data)


@pytest.mark.parametrize(("files", "spare", "most"), [(256, 200, 128), (1024, 200, 824), (65_536, 200, 65_336)])
def test_other_files_are_left(files: int, spare: int, most: int) -> None:
    assert max_connections(files, spare) == most


class TCPTransport(Transport):
    """What TLS finds below it, and the protocol that it speaks through."""

    protocol: Any = None

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """Only there."""

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Only there."""


class Listening(StageCase):
    limits = ConnectionLimits(trusted_proxies=(ip_network("10.0.0.0/24"), ip_network("2001:db8:1::/48")))

    def setUp(self) -> None:
        super().setUp()
        self.reactor = MemoryReactorClock()

    def listen(self, description: str = "tcp:5000", limits: ConnectionLimits | None = None) -> Any:
        """The factory that the reactor got."""
        self.successResultOf(open_endpoint(self.reactor, description, self.stage.lines, limits or self.limits)())
        return (self.reactor.unixServers if description.startswith("unix") else self.reactor.tcpServers)[-1][1]

    def connect(self, host: str, factory: Any) -> TCPTransport:
        """A connection from this address to what the reactor got."""
        address = IPv4Address("TCP", host, 1)
        transport = TCPTransport(peerAddress=address)
        transport.protocol = factory.buildProtocol(address)
        transport.protocol.makeConnection(transport)
        return transport

    def send(self, transport: TCPTransport, *pieces: bytes) -> bytes:
        """What the server answers, which speaks through the protocol that the transport has now."""
        for piece in pieces:
            if not transport.disconnecting:
                transport.protocol.dataReceived(piece)
        self.stage.run_pending()
        self.reactor.advance(0)
        answer: bytes = transport.value()
        transport.clear()
        return answer

    def test_the_queue_is_long_unless_the_endpoint_says_otherwise(self) -> None:
        for description, backlog in (
            ("tcp:5000", 1024),
            ("tcp:5000:interface=127.0.0.1", 1024),
            ("tcp6:5000", 1024),
            ("haproxy:tcp:5000", 1024),
            ("tcp:5000:backlog=50", 50),
        ):
            self.listen(description)
            self.assertEqual(self.reactor.tcpServers[-1][2], backlog, description)
        self.listen("unix:/run/x")
        self.assertEqual(self.reactor.unixServers[-1][2], 1024)
        self.listen("tcp:5000", ConnectionLimits(backlog=7))
        self.assertEqual(self.reactor.tcpServers[-1][2], 7)

    def test_a_trusted_balancer_names_the_client(self) -> None:
        factory = self.listen()
        for header in (V1, v2("203.0.113.7")):
            for pieces in ([header + HEALTH], [header, HEALTH], [bytes([byte]) for byte in header + HEALTH]):
                transport = self.connect(BALANCER, factory)
                answer = self.send(transport, *pieces)
                self.assertIn(b"forbidden", answer)
                self.assertEqual(transport.protocol.address, "203.0.113.7")

    def test_a_balancer_speaks_for_itself(self) -> None:
        transport = self.connect(BALANCER, self.listen())
        self.assertIn(b"true", self.send(transport, V2 + b"\x20\0\0\0" + b'{"action":"ping"}\n'))
        self.assertEqual(transport.protocol.address, BALANCER)

    def test_a_trusted_balancer_must_send_a_header(self) -> None:
        factory = self.listen()
        with capturedLogs() as logs:
            for data in (HEALTH, b"PROXY TCP4 nonsense\r\n" + HEALTH):
                transport = self.connect(BALANCER, factory)
                self.assertEqual(self.send(transport, data), b"")
                self.assertTrue(transport.disconnected)
        self.assertEqual(logs[0]["why"], "a balancer sent no valid PROXY header")

    def test_the_header_has_five_seconds(self) -> None:
        factory = self.listen()
        slow = self.connect(BALANCER, factory)
        self.send(slow, V1[:20])
        quick = self.connect(BALANCER, factory)
        self.send(quick, V1)
        self.reactor.advance(HEADER_SECONDS)
        self.assertEqual((slow.disconnected, quick.disconnected), (True, False))

    def test_connections_that_wait_for_a_header_are_bounded(self) -> None:
        factory = self.listen()
        with capturedLogs() as logs:
            first, second, *rest = [self.connect(BALANCER, factory) for _ in range(MAX_WAITING)]
            self.assertFalse(first.disconnected)
            newcomer = self.connect(BALANCER, factory)
        self.assertEqual([each.disconnected for each in (first, second, rest[-1], newcomer)], [True] + [False] * 3)
        self.assertEqual([event["why"] for event in logs], ["too many connections wait for a PROXY header"])
        self.assertIn(b"true", self.send(second, V1 + b'{"action":"ping"}\n'))
        self.connect(BALANCER, factory)
        self.assertFalse(rest[0].disconnected)

    def test_nobody_else_may_send_a_header(self) -> None:
        factory = self.listen()
        for header in (V1, v2("127.0.0.1")):
            transport = self.connect(STRANGER, factory)
            answer = self.send(transport, header + HEALTH)
            self.assertIn(b"bad_json", answer)
            self.assertEqual(answer.count(b"\n"), 1)
            self.assertTrue(transport.disconnecting)

    def test_without_the_setting_nobody_may(self) -> None:
        transport = self.connect(BALANCER, self.listen(limits=ConnectionLimits()))
        self.assertIn(b"bad_json", self.send(transport, V1 + HEALTH))

    def test_the_prefix_haproxy_trusts_everybody(self) -> None:
        transport = self.connect(STRANGER, self.listen("haproxy:tcp:5000", ConnectionLimits()))
        self.assertIn(b"true", self.send(transport, V1 + b'{"action":"ping"}\n'))
        self.assertEqual(transport.protocol.address, "203.0.113.7")

    def test_a_header_for_a_server_that_is_stopping(self) -> None:
        factory = self.listen()
        transport = self.connect(BALANCER, factory)
        self.stage.lines.drain()
        self.assertEqual(self.send(transport, V1 + HEALTH), b"")
        self.assertTrue(transport.disconnected)

    def test_a_client_that_does_not_speak_tls_is_told(self) -> None:
        factory = self.listen(f"ssl:5001:privateKey={self.pem()}:certKey={self.pem()}")
        for pieces in ([b'{"action":"ping"}\n'], [b"P", b"OST / HTTP/1.1\r\n"]):
            transport = self.connect(STRANGER, factory)
            answer = self.send(transport, *pieces)
            self.assertIn(b"speaks TLS only", answer)
            self.assertTrue(transport.disconnecting)

    def test_tls_behind_a_header(self) -> None:
        factory = self.listen(f"ssl:5001:privateKey={self.pem()}:certKey={self.pem()}")
        transport = self.connect(BALANCER, factory)
        self.assertIn(b"speaks TLS only", self.send(transport, V1 + HEALTH))

    def pem(self) -> str:
        """A file with a key and a certificate."""
        path = Path(self.mktemp())
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
        now = self.stage.now()
        certificate = (
            x509.CertificateBuilder(name, name, key.public_key(), 1, now, now.replace(year=now.year + 1))
            .sign(key, hashes.SHA256())
            .public_bytes(serialization.Encoding.PEM)
        )
        encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        path.write_bytes(key.private_bytes(encoding, form, serialization.NoEncryption()) + certificate)
        return str(path)
