"""The line protocol over any Twisted transport: bytes to session and back, with backpressure both ways."""

from __future__ import annotations

from collections import deque
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IDelayedCall,
    IHalfCloseableProtocol,
    IPushProducer,
    IReactorTime,
    ITCPTransport,
)
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure
from zope.interface import implementer

from taskd.errors import Draining, Internal, TaskdError, TooLarge
from taskd.server.actions import Actions, Peer, Then
from taskd.server.hub import DRAINING, GAP
from taskd.wire.limits import MAX_LINE_BYTES
from taskd.wire.session import Call, ServerSession

MAX_EVENT_BYTES = 1024 * 1024
"""Events kept for a reader that does not read; one more, and they are dropped and it is told of the gap."""

CLOSE_SECONDS = 5.0
"""What a peer gets to read its last replies before the connection is aborted."""


@implementer(IHalfCloseableProtocol)
class LineConnection(LineReceiver):
    """One client. A client that only writes (``printf ... | nc``) is answered before the connection is closed."""

    _log = Logger()
    delimiter = b"\n"
    MAX_LENGTH = MAX_LINE_BYTES + 1  # a carriage return may stand before the line end

    def __init__(self, actions: Actions, clock: IReactorTime, factory: LineFactory) -> None:
        self._actions = actions
        self._clock = clock
        self._factory = factory
        self._peer = Peer(self._event)
        self._session = ServerSession(self._start, self._write, self._congested)
        self._skipping = False
        self._held: deque[bytes] = deque()
        self._held_bytes = 0
        self._blocked = False
        self._full = False
        self._draining = False
        self._closer: IDelayedCall | None = None

    # from the transport

    def connectionMade(self) -> None:
        self._factory.connections.add(self)
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpKeepAlive(True)
            self.transport.setTcpNoDelay(True)
        self.transport.registerProducer(_Flow(self), True)

    def lineReceived(self, line: bytes) -> None:
        self._session.receive(line[:-1] if line.endswith(b"\r") else line)

    def lineLengthExceeded(self, line: bytes) -> None:
        self._session.refuse(
            TooLarge(f"the line is longer than {MAX_LINE_BYTES} bytes; split it, new_tasks into several for instance")
        )
        self._skip(line)

    def rawDataReceived(self, data: bytes) -> None:
        self._skip(data)

    def readConnectionLost(self) -> None:
        rest = self.clearLineBuffer()
        if rest and not self._skipping:
            self.lineReceived(rest)
        self.close()

    def writeConnectionLost(self) -> None:
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure = Failure(Exception())) -> None:  # noqa: B008 (the base's signature)
        self._factory.gone(self)
        self._peer.gone()
        self._held.clear()
        if self._closer is not None:
            self._closer.cancel()
            self._closer = None

    def _skip(self, data: bytes) -> None:
        """Throw away the rest of an overlong line and go on behind it."""
        _, end, rest = data.partition(self.delimiter)
        self._skipping = not end
        if end:
            self.setLineMode(rest)
        else:
            self.setRawMode()

    # to the transport

    def drain(self) -> None:
        """The server is stopping: answer what was asked, refuse what comes, close."""
        self._draining = True
        if self._peer.watch is not None:
            self._peer.unwatch()
            self._event(DRAINING)
        self._peer.gone()
        self.close()

    def close(self) -> None:
        """Close once everything taken has been answered and read, or a few seconds later."""
        self._session.close(self._goodbye)

    def _goodbye(self) -> None:
        self.transport.unregisterProducer()
        self._send_held()
        self.transport.loseConnection()
        if self._closer is None and self in self._factory.connections:
            self._closer = self._clock.callLater(CLOSE_SECONDS, self._give_up)

    def _give_up(self) -> None:
        self._closer = None
        self.abort()

    def abort(self) -> None:
        """Cut the connection."""
        self.transport.abortConnection()

    def _write(self, line: bytes) -> None:
        self.transport.write(line)

    def _event(self, lines: bytes) -> None:
        if not self._blocked:
            self.transport.write(lines)
            return
        self._held.append(lines)
        self._held_bytes += len(lines)
        if self._held_bytes > MAX_EVENT_BYTES and self._peer.watch is not None:
            self._peer.unwatch()
            self._held.clear()
            self._held.append(GAP)

    def _send_held(self) -> None:
        if self._held:
            self.transport.writeSequence(list(self._held))
            self._held.clear()
        self._held_bytes = 0

    def writable(self, yes: bool) -> None:
        """Whether the peer reads what we write. While it does not, nothing more is read from it either."""
        self._blocked = not yes
        if yes:
            self._send_held()
        self._flow()

    def _congested(self, yes: bool) -> None:
        self._full = yes
        self._flow()

    def _flow(self) -> None:
        stop = self._blocked or self._full
        if stop and not self.paused:
            self.pauseProducing()
        elif not stop and self.paused:
            self.resumeProducing()

    # calls

    def _start(self, call: Call) -> None:
        Deferred.fromCoroutine(self._perform(call)).addErrback(self._failed, call)

    async def _perform(self, call: Call) -> None:
        try:
            if self._draining:
                raise Draining("this server is stopping; connect again", retry_after=1)
            answer = await self._actions.perform(self._peer, call.action, call.request)
        except TaskdError as e:
            call.fail(e)
            return
        if type(answer) is Then:
            call.succeed(answer.reply)
            answer.after()
        else:
            call.succeed(answer)

    def _failed(self, failure: Failure, call: Call) -> None:
        self._log.failure("{action} failed", failure, action=call.action.name)
        call.fail(Internal(f"{call.action.name} failed for a reason of the server's; its log says more"))


@implementer(IPushProducer)
class _Flow:
    """What the transport tells when its buffer fills and empties. Not the connection itself, whose methods of the same
    names pause *reading*."""

    def __init__(self, connection: LineConnection) -> None:
        self._connection = connection

    def pauseProducing(self) -> None:
        self._connection.writable(False)

    def resumeProducing(self) -> None:
        self._connection.writable(True)

    def stopProducing(self) -> None:
        pass  # connectionLost follows


class LineFactory(Factory):
    """Makes a connection for each client."""

    noisy = False

    def __init__(self, actions: Actions, clock: IReactorTime) -> None:
        self._actions = actions
        self._clock = clock
        self.connections: set[LineConnection] = set()
        self._empty: list[Deferred[None]] = []
        self._draining = False

    def buildProtocol(self, addr: Any) -> LineConnection | None:
        if self._draining:
            return None
        connection = LineConnection(self._actions, self._clock, self)
        connection.factory = self
        return connection

    def drain(self) -> None:
        """Close every connection once it has been answered, those included that are only just being accepted."""
        self._draining = True
        for connection in tuple(self.connections):
            connection.drain()

    def gone(self, connection: LineConnection) -> None:
        """A connection is lost."""
        self.connections.discard(connection)
        if not self.connections:
            for waiting in self._empty:
                waiting.callback(None)
            self._empty.clear()

    def empty(self) -> Deferred[None]:
        """Fires when no connection is left."""
        done: Deferred[None] = Deferred()
        if self.connections:
            self._empty.append(done)
        else:
            done.callback(None)
        return done

    def abort(self) -> None:
        """Cut every connection."""
        for connection in tuple(self.connections):
            connection.abort()
