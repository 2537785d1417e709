"""Connections between clients and servers. Bytes arrive late and in pieces, and connections break."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IAddress, IPushProducer, ITransport
from twisted.python.failure import Failure
from zope.interface import implementer

if TYPE_CHECKING:
    from tests.simulation.processes import ServerProcess
    from tests.simulation.world import World

HIGH_WATER = 8 * 1024
"""Bytes that the server's end buffers before it pauses its producer."""


class Reader(Protocol):
    """The client's end of a connection."""

    def data(self, data: bytes) -> None:
        """Bytes from the server."""

    def lost(self) -> None:
        """The connection is over."""


@implementer(ITransport)
class Connection:
    """A connection, which is the transport of the server's protocol.

    Each direction keeps its order. Bytes under way are lost when a process dies.
    """

    def __init__(self, world: World, server: ServerProcess, client: Reader, name: str) -> None:
        self._world = world
        self._server = server
        self._client = client
        self._stream = world.stream("connection", name)
        self._protocol: Any = None
        self._producer: IPushProducer | None = None
        self._paused = False
        self._reading = True
        self._to_server = bytearray()
        self._to_client = bytearray()
        self._server_flush = False
        self._client_flush = False
        self._half_close_pending = False
        self._half_closed = False
        self._closing = False
        self._full = False
        self.over = False
        server.connections.append(self)
        server.clock.callLater(self._delay(), self._accept)

    def _delay(self) -> float:
        return float(self._stream.expovariate(1 / self._world.plan.network_seconds))

    def _accept(self) -> None:
        if self.over:
            return
        self._protocol = self._server.build_protocol()
        if self._protocol is None:
            self.cut()
            return
        self._protocol.makeConnection(self)
        self._flush_to_server_later()

    @property
    def all_received(self) -> bool:
        """Whether the connection is open and no bytes are under way to the client."""
        return not (self._to_client or self._half_closed or self.over)

    @property
    def is_watched(self) -> bool:
        """Whether the server has an open watch for this client."""
        watch = self._protocol._subscriptions.watch
        return watch is not None and not watch.closed

    # -- the client's side

    def send(self, data: bytes) -> None:
        """The client writes bytes."""
        if not self.over:
            self._to_server += data
            self._flush_to_server_later()

    def half_close(self) -> None:
        """The client closes its writing side, and still reads."""
        self._half_close_pending = self._half_closed = True
        self._flush_to_server_later()

    def read(self, yes: bool) -> None:
        """Start or stop the client's reading."""
        self._reading = yes
        if yes and self._to_client:
            self._flush_to_client_later()

    def cut(self) -> None:
        """Break the connection. Each end notices it some time later."""
        if not self.over:
            self.over = True
            self._world.clock.call(None, self._stream.uniform(0, 0.5), self._client.lost)
            self._server.clock.callLater(self._stream.uniform(0, 0.5), self._server_lost, Failure(ConnectionLost()))

    # -- to the server

    def _flush_to_server_later(self) -> None:
        if not self._server_flush and self._protocol is not None:
            self._server_flush = True
            self._server.clock.callLater(self._delay(), self._flush_to_server)

    def _flush_to_server(self) -> None:
        self._server_flush = False
        if self.over or self._paused or self._closing:
            return
        data = self._piece(self._to_server)
        if data:
            self._protocol.dataReceived(data)
        if self._to_server:
            self._flush_to_server_later()
        elif self._half_close_pending and not self.over and not self._paused:
            self._half_close_pending = False
            self._protocol.readConnectionLost()

    def _piece(self, buffer: bytearray) -> bytes:
        size = len(buffer)
        if size > 1 and self._stream.random() < 0.2:
            size = self._stream.randrange(1, size)
        piece = bytes(buffer[:size])
        del buffer[:size]
        return piece

    # -- to the client

    def _flush_to_client_later(self) -> None:
        if not self._client_flush:
            self._client_flush = True
            self._world.clock.call(None, self._delay(), self._flush_to_client)

    def _flush_to_client(self) -> None:
        self._client_flush = False
        if self.over or not self._reading:
            return
        data = self._piece(self._to_client)
        if data:
            self._client.data(data)
        if self._to_client:
            self._flush_to_client_later()
            return
        if self._closing:
            self._end(Failure(ConnectionDone()))
        elif self._full and self._producer is not None:
            self._full = False
            self._server.clock.callLater(0, self._resume)

    def _resume(self) -> None:
        if self._producer is not None and not self._full and not self.over:
            self._producer.resumeProducing()

    def _end(self, reason: Failure) -> None:
        if not self.over:
            self.over = True
            self._world.clock.call(None, self._delay(), self._client.lost)
            self._server.clock.callLater(0, self._server_lost, reason)

    def _server_lost(self, reason: Failure) -> None:
        if self in self._server.connections:
            self._server.connections.remove(self)
        self._producer = None
        if self._protocol is not None:
            self._protocol.connectionLost(reason)

    # -- ITransport, IConsumer and IPushProducer

    def write(self, data: bytes) -> None:
        if self.over or self._closing:
            return
        self._to_client += data
        self._flush_to_client_later()
        if len(self._to_client) > HIGH_WATER and self._producer is not None:
            self._full = True
            self._producer.pauseProducing()

    def writeSequence(self, data: Any) -> None:
        self.write(b"".join(data))

    def loseConnection(self) -> None:
        if not self._closing:
            self._closing = True
            self._flush_to_client_later()

    def abortConnection(self) -> None:
        self._end(Failure(ConnectionAborted()))

    def getPeer(self) -> IAddress:
        return IPv4Address("TCP", "192.0.2.1", 40000)

    def getHost(self) -> IAddress:
        return IPv4Address("TCP", "192.0.2.2", 5000)

    def registerProducer(self, producer: IPushProducer, streaming: bool) -> None:
        self._producer = producer

    def unregisterProducer(self) -> None:
        self._producer = None

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        self._flush_to_server_later()

    def stopProducing(self) -> None:
        self.loseConnection()
