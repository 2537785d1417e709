"""Two ends of a TLS connection in memory, with real handshakes."""

from __future__ import annotations

from typing import Any

from OpenSSL import SSL
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from twisted.test import iosim
from zope.interface import implementer


@implementer(IOpenSSLClientConnectionCreator)
class Careless:
    """A client that checks nothing, with the protocol versions and ciphers that the test wants."""

    def __init__(self, version: int | None = None, ciphers: bytes | None = None, host: bytes = b"localhost") -> None:
        self.context = SSL.Context(SSL.TLS_METHOD)
        if ciphers is not None:
            self.context.set_cipher_list(ciphers + b":@SECLEVEL=0")
        if version is not None:
            self.context.set_min_proto_version(version)
            self.context.set_max_proto_version(version)
        self._host = host

    def clientConnectionForTLS(self, protocol: Any) -> SSL.Connection:
        """A connection."""
        connection = SSL.Connection(self.context, None)
        connection.set_tlsext_host_name(self._host)
        return connection


class End(Protocol):
    """Remembers what it has read and why it was lost."""

    def __init__(self) -> None:
        self.received = b""
        self.lost: Failure | None = None

    def dataReceived(self, data: bytes) -> None:
        """More bytes."""
        self.received += data

    def connectionLost(self, reason: Failure = Failure(Exception())) -> None:  # noqa: B008 (the base's signature)
        """The end."""
        self.lost = reason


class Wire(iosim.FakeTransport):
    """Has the option of TCP that our protocols set."""

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Nothing to set."""


def factory(end: Protocol) -> Factory:
    """Makes this protocol."""
    return Factory.forProtocol(lambda: end)


class Pair:
    """A client and a server over TLS. Both have sent a line when the handshake succeeded."""

    def __init__(self, client_tls: Any, server_tls: Any, client: Any = None, server: Any = None) -> None:
        self.client: Any = client or End()
        self.server: Any = server or End()
        self._clock = Clock()
        self._outer = [
            TLSMemoryBIOFactory(tls, is_client, factory(end), self._clock).buildProtocol(None)
            for tls, is_client, end in ((client_tls, True, self.client), (server_tls, False, self.server))
        ]
        client_outer, server_outer = self._outer
        self.pump = iosim.connect(
            server_outer,
            Wire(server_outer, isServer=True),
            client_outer,
            Wire(client_outer, isServer=False),
        )
        self.flush()

    def flush(self) -> None:
        """Let everything arrive."""
        while self._clock.getDelayedCalls() or self.pump.pump():
            self._clock.advance(0)  # Twisted sends what an end writes in the reactor's next turn

    def talk(self) -> bool:
        """Whether bytes come through in both directions."""
        for end in (self.client, self.server):
            if end.transport is not None and end.lost is None:
                end.transport.write(b"hello\n")
        self.flush()
        return bool(self.client.received and self.server.received)

    @property
    def connection(self) -> SSL.Connection:
        """The client's end in OpenSSL."""
        handle = self.client.transport.getHandle()
        assert isinstance(handle, SSL.Connection)
        return handle
