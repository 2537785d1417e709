"""Listens on an endpoint, with what every port of a server has: a long queue, keepalive, TLS with clear refusals, and
the PROXY protocol of trusted balancers."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from functools import partial
from ipaddress import IPv4Network, IPv6Network
from typing import Any

from msgspec import UNSET
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint
from twisted.protocols.tls import BufferingTLSTransport, TLSMemoryBIOFactory
from twisted.python.failure import Failure

from taskd.config import ConnectionLimits
from taskd.model.addresses import parsed
from taskd.model.errors import BadJson
from taskd.protocol.codec import encode_error
from taskd.server.line_connection import LineFactory
from taskd.server.proxy_header import ProxyFactory, Trusted

PROBES = 4
"""TCP asks so often whether the other machine is there before it gives up."""

_HAPROXY = "haproxy:"


def open_endpoint(
    reactor: Any,
    description: str,
    lines: LineFactory,
    limits: ConnectionLimits,
    make: Callable[[Any, str], IStreamServerEndpoint] = serverFromString,
) -> Callable[[], Deferred[IListeningPort]]:
    """Check an endpoint string of Twisted, of which ``make`` makes an endpoint. The result listens on it. Raises what
    ``make`` raises for a wrong string.

    ``haproxy:`` before an endpoint trusts every address to send PROXY headers.
    """
    always = description.startswith(_HAPROXY)
    trusted: Trusted | None = None
    if always:
        trusted = _everybody
    elif limits.trusted_proxies:
        trusted = partial(_is_trusted, limits.trusted_proxies)
    ports = _Reactor(reactor, lines, limits, "backlog=" in description, trusted)
    endpoint = make(ports, description.removeprefix(_HAPROXY))

    def listen() -> Deferred[IListeningPort]:
        return endpoint.listen(lines).addCallback(_keep_alive, limits.keepalive_seconds)

    return listen


class _Reactor:
    """The reactor as an endpoint sees it: each way to listen gets the same additions."""

    def __init__(
        self,
        reactor: Any,
        lines: LineFactory,
        limits: ConnectionLimits,
        has_backlog: bool,
        trusted: Trusted | None,
    ) -> None:
        self._reactor = reactor
        self._lines = lines
        self._limits = limits
        self._has_backlog = has_backlog
        self._trusted = trusted

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def listenTCP(self, port: int, factory: IProtocolFactory, backlog: int = 50, interface: str = "") -> Any:
        return self._reactor.listenTCP(port, self._gated(factory), self._backlog(backlog), interface)

    def listenSSL(
        self, port: int, factory: IProtocolFactory, contextFactory: Any, backlog: int = 50, interface: str = ""
    ) -> Any:
        # what the reactor does itself, with a protocol of ours
        return self.listenTCP(port, TLSFactory(contextFactory, False, factory, self._reactor), backlog, interface)

    def listenUNIX(
        self, address: str, factory: IProtocolFactory, backlog: int = 50, mode: int = 0o666, wantPID: bool = False
    ) -> Any:
        return self._reactor.listenUNIX(address, self._gated(factory), self._backlog(backlog), mode, wantPID)

    def adoptStreamPort(self, fileno: int, addressFamily: Any, factory: IProtocolFactory) -> Any:
        return self._reactor.adoptStreamPort(fileno, addressFamily, self._gated(factory))

    def _backlog(self, given: int) -> int:
        return given if self._has_backlog else self._limits.backlog

    def _gated(self, factory: IProtocolFactory) -> IProtocolFactory:
        if self._trusted is None:
            return factory
        return ProxyFactory(factory, self._reactor, self._trusted, self._lines.refusals)


class TLSConnection(BufferingTLSTransport):
    """TLS, with an error that can be read for a client that does not speak it."""

    transport: Any
    _begun = False

    def dataReceived(self, data: bytes) -> None:
        if not self._begun:
            self._begun = True
            # every record of a handshake begins with this byte
            if not data.startswith(b"\x16"):
                text = "this port speaks TLS only; connect with TLS, for example taskclient --server tls:HOST:PORT"
                self.transport.write(encode_error(BadJson(text), UNSET))
                self.transport.unregisterProducer()
                self.transport.loseConnection()
                return
        super().dataReceived(data)
        if self._lostTLSConnection and self.transport is not None:
            # TLS has ended, and Twisted has called loseConnection. With a full buffer the transport would only resume
            # the producer when the buffer is empty, and never close.
            self.transport.unregisterProducer()

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008 (the base's signature)
        super().connectionLost(reason)
        # as in LineConnection: free the buffers now
        self.transport = None
        self._appSendBuffer = []


class TLSFactory(TLSMemoryBIOFactory):
    """Wraps connections in TLS. A connection that the wrapped factory refuses is closed at once."""

    protocol: Any = None

    def buildProtocol(self, addr: Any) -> Any:
        inner = self.wrappedFactory.buildProtocol(addr)
        return None if inner is None else TLSConnection(self, inner)


def _everybody(host: str | None) -> bool:
    return True


def _is_trusted(networks: Sequence[IPv4Network | IPv6Network], host: str | None) -> bool:
    found = parsed(host)
    return found is not None and any(found in network for network in networks)


def _keep_alive(port: IListeningPort, seconds: int) -> IListeningPort:
    """Find connections whose client's machine has gone. On Linux, accepted connections inherit these options."""
    listening = getattr(port, "socket", None)
    if listening is not None and listening.family in (socket.AF_INET, socket.AF_INET6):
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in {
            "TCP_KEEPIDLE": seconds,
            "TCP_KEEPINTVL": max(1, seconds // PROBES),
            "TCP_KEEPCNT": PROBES,
            # also for bytes that were sent and that nobody takes
            "TCP_USER_TIMEOUT": 2 * seconds * 1000,
        }.items():
            if hasattr(socket, name):
                listening.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return port
