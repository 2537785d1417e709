"""The PROXY protocol, versions 1 and 2: a balancer says whose connection it passes on.

Source: https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt. Twisted's ``haproxy`` wrapper believes every client
and waits without a limit, it needs the first 16 bytes in one piece, and it tells the address only after the connection
was made.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, NamedTuple, TypeAlias

from twisted.internet.interfaces import IAddress, IProtocol, IProtocolFactory, IReactorTime
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure
from zope.interface import implementer

from taskd.server.deadlines import Deadlines
from taskd.server.flood_log import FloodLog

HEADER_SECONDS = 5.0
"""A balancer sends the header at once."""

MAX_WAITING = 1000
"""Connections that wait for a header. With more, the oldest is closed."""

V2 = b"\r\n\r\n\0\r\nQUIT\n"
V2_START = 16
V1_BYTES = 107
V2_BYTES = 4096
"""The fields behind the addresses, which say for example who signed a certificate, are not read."""


Trusted: TypeAlias = Callable[[str | None], bool]
"""Whether connections from this address must begin with a header."""


class Header(NamedTuple):
    """A complete header. ``source`` is the client, None if the balancer speaks for itself, as in its health checks, or
    does not know; ``size`` is the length in bytes."""

    source: IPv4Address | IPv6Address | None
    port: int
    size: int


@implementer(IAddress)
class ToldAddress(NamedTuple):
    """Where the client of a balancer is, as its header says. ``client`` is None if the header names no client; then
    ``host`` is the balancer's own address, if it has one."""

    host: str | None
    client: IPv4Address | IPv6Address | None


class BadHeader(Exception):
    """These bytes are not the start of a PROXY header."""


def parse(data: bytes) -> Header | None:
    """The header at the start of ``data``, None if it is not complete. Raises BadHeader."""
    try:
        if data[: len(V2)] == V2[: len(data)]:
            return _parse_v2(data)
        if data[:6] == b"PROXY "[: len(data)]:
            return _parse_v1(data)
    except (ValueError, struct.error) as e:
        raise BadHeader(str(e)) from None
    raise BadHeader("no PROXY header")


def _parse_v1(data: bytes) -> Header | None:
    end = data.find(b"\r\n", 0, V1_BYTES)
    if end < 0:
        if len(data) >= V1_BYTES:
            raise BadHeader("the line is too long")
        return None
    words = data[:end].decode("ascii").split(" ")
    if words[1] == "UNKNOWN":
        return Header(None, 0, end + 2)
    _, family, source, _, port, _ = words
    if family == "TCP4":
        return Header(IPv4Address(source), int(port), end + 2)
    if family == "TCP6":
        return Header(IPv6Address(source), int(port), end + 2)
    raise BadHeader("unknown family")


def _parse_v2(data: bytes) -> Header | None:
    if len(data) < V2_START:
        return None
    command, family, length = struct.unpack_from("!BBH", data, len(V2))
    size = V2_START + length
    if command not in (0x20, 0x21) or size > V2_BYTES:
        raise BadHeader("unknown version or command, or too long")
    if len(data) < size:
        return None
    width = {0x11: 4, 0x21: 16}.get(family)
    if command == 0x20 or width is None:
        return Header(None, 0, size)
    if length < 2 * width + 4:
        raise BadHeader("the addresses are not complete")
    (port,) = struct.unpack_from("!H", data, V2_START + 2 * width)
    return Header(ip_address(data[V2_START : V2_START + width]), port, size)


class ProxyFactory(Factory):
    """Stands before ``factory``. Connections from addresses that are ``trusted`` must begin with a header. The others
    go to ``factory`` at once."""

    noisy = False

    def __init__(
        self,
        factory: IProtocolFactory,
        clock: IReactorTime,
        trusted: Trusted,
        refusals: FloodLog,
    ) -> None:
        self.wrapped = factory
        self.refusals = refusals
        self.waiting: Deadlines[ProxyConnection] = Deadlines(clock, HEADER_SECONDS, ProxyConnection.too_late)
        self._trusted = trusted

    def doStart(self) -> None:
        self.wrapped.doStart()

    def doStop(self) -> None:
        self.wrapped.doStop()

    def buildProtocol(self, addr: IAddress | None) -> Any:
        assert addr is not None
        if not self._trusted(getattr(addr, "host", None)):
            return self.wrapped.buildProtocol(addr)
        return ProxyConnection(self, addr)


class ProxyConnection(Protocol):
    """Waits for the header, and then gives its place to the protocol of the client."""

    transport: Any

    def __init__(self, factory: ProxyFactory, peer: IAddress) -> None:
        self._factory = factory
        self._peer = peer
        self._data = b""
        self._protocol: IProtocol | None = None

    def connectionMade(self) -> None:
        waiting = self._factory.waiting
        if len(waiting) >= MAX_WAITING:
            next(iter(waiting)).crowded_out()
        waiting.add(self)

    def dataReceived(self, data: bytes) -> None:
        self._data += data
        try:
            header = parse(self._data)
        except BadHeader:
            self._refuse("a balancer sent no valid PROXY header")
            return
        if header is None:
            return
        self._factory.waiting.discard(self)
        rest, self._data = self._data[header.size :], b""
        protocol = self._factory.wrapped.buildProtocol(_address(header, self._peer))
        if protocol is None:
            self.transport.abortConnection()
            return
        self.transport.protocol = protocol
        protocol.makeConnection(self.transport)
        if rest:
            protocol.dataReceived(rest)

    def connectionLost(self, reason: Failure | None = None) -> None:
        self._factory.waiting.discard(self)

    def too_late(self) -> None:
        """The time for the header is over."""
        self._refuse("a balancer sent no PROXY header in time")

    def crowded_out(self) -> None:
        """Too many wait, and this one is the oldest."""
        self._refuse("too many connections wait for a PROXY header")

    def _refuse(self, why: str) -> None:
        self._factory.waiting.discard(self)
        self._factory.refusals.note(why, getattr(self._peer, "host", None))
        self.transport.abortConnection()


def _address(header: Header, peer: IAddress) -> ToldAddress:
    host = getattr(peer, "host", None) if header.source is None else str(header.source)
    return ToldAddress(host, header.source)
