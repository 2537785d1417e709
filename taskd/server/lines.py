"""The line protocol over any Twisted transport: bytes to session and back, with backpressure both ways."""

from __future__ import annotations

import re
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

from taskd.api.actions import Actions
from taskd.api.peer import Peer, Then
from taskd.api.reply_limiter import ReplyLimiter
from taskd.events.hub import DRAINING, GAP
from taskd.model.errors import BadJson, Draining, Internal, TaskdError, TooLarge
from taskd.protocol.framing import Framer
from taskd.protocol.limits import MAX_LINE_BYTES
from taskd.server.pipeline import Call, ServerSession

MAX_EVENT_BYTES = 1024 * 1024
"""Events kept for a peer that does not read; with more it is told of a gap and gets none until it watches again."""

_POST = re.compile(rb"POST \S+ HTTP/\d")
"""The only request with a body that a page of any origin can have a browser send, with its text as it is."""

CLOSE_SECONDS = 5.0
"""What a peer gets to read its last replies before the connection is aborted, when the server is stopping."""

LINGER_SECONDS = 300.0
"""The same when it was the peer that ended the conversation."""


@implementer(IHalfCloseableProtocol)
class LineConnection(LineReceiver):
    """One client. A client that only writes (``printf ... | nc``) is answered before the connection is closed.

    Nothing is read from a client that does not read its replies, or that has enough requests under way. Lines are cut
    by a Framer: LineReceiver itself copies its whole buffer for each line, searches it again for each chunk (Twisted
    #6357), and takes what stands behind an overlong line for a part of it.
    """

    _log = Logger()
    transport: Any

    def __init__(self, actions: Actions, clock: IReactorTime, factory: LineFactory) -> None:
        self._actions = actions
        self._clock = clock
        self._factory = factory
        self._turns = ReplyLimiter(clock)
        self._peer = Peer(self._event, reading=self._turns)
        self._session = ServerSession(self._start, self._write, self._congested)
        self._framer = Framer()
        self._lines: deque[bytes | None] = deque()
        self._spoken_to = False
        self._reading = False
        self._paused = False
        self._ended = False
        self._blocked = False
        self._full = False
        self._unread = 0
        self._linger = LINGER_SECONDS
        self._draining = False
        self._lost = False
        self._closer: IDelayedCall | None = None

    # from the transport

    def connectionMade(self) -> None:
        self._factory.connections.add(self)
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpKeepAlive(True)
            self.transport.setTcpNoDelay(True)
        self.transport.registerProducer(_Flow(self), True)

    def lineReceived(self, line: bytes) -> None:
        if not self._spoken_to and _POST.match(line):
            # each line of the page's text would be a request, sent from inside the network that the browser is in
            self._session.refuse(BadJson("this port speaks lines of JSON, not HTTP; see docs/protocol.md"))
            self._session.close(self._goodbye)
        else:
            self._session.receive(line)
        self._spoken_to = True

    def lineLengthExceeded(self, line: bytes) -> None:
        text = f"the line is longer than {MAX_LINE_BYTES} bytes; send less in one, or several new_tasks"
        self._session.refuse(TooLarge(text))

    def dataReceived(self, data: bytes) -> None:
        self._lines.extend(self._framer.feed(data))
        self._read()

    def readConnectionLost(self) -> None:
        if not self._ended:
            self._ended = True
            rest = self._framer.end()
            if rest is not None:
                self._lines.append(rest)
            self._read()

    def writeConnectionLost(self) -> None:
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure = Failure(Exception())) -> None:  # noqa: B008 (the base's signature)
        self._lost = True
        self._factory.gone(self)
        self._lines.clear()
        self._session.abandon()
        self._peer.gone()
        self._turns.close()
        if self._closer is not None:
            self._closer.cancel()
            self._closer = None

    def _read(self) -> None:
        """Take what has arrived, as far as the peer reads and the session takes more."""
        if self._reading:
            return
        self._reading = True
        try:
            while self._lines and not (self._blocked or self._full):
                line = self._lines.popleft()
                if line is None:
                    self.lineLengthExceeded(b"")
                else:
                    self.lineReceived(line)
        finally:
            self._reading = False
        if self._ended and not self._lines and not self._lost:
            self._session.close(self._goodbye)

    # to the transport

    def drain(self) -> None:
        """The server is stopping: answer what was asked, refuse what comes, close."""
        self._draining = True
        self._linger = CLOSE_SECONDS
        if self._peer.has_subscriptions:
            self._peer.cancel_subscriptions()
            self._event(DRAINING)
        self._peer.gone()
        self._session.close(self._goodbye)

    def abort(self) -> None:
        """Cut the connection."""
        self.transport.abortConnection()

    def _goodbye(self) -> None:
        if self._lost:
            return
        if self._closer is not None:
            self._closer.reset(self._linger)
            return
        self._peer.gone()
        self._closer = self._clock.callLater(self._linger, self._give_up)
        # or the transport would wait for the producer before it closes
        self.transport.unregisterProducer()
        self.transport.loseConnection()

    def _give_up(self) -> None:
        self._closer = None
        self.abort()

    def _write(self, line: bytes) -> None:
        self.transport.write(line)

    def _event(self, lines: bytes) -> None:
        if self._lost:
            return
        self.transport.write(lines)
        if self._blocked:
            self._unread += len(lines)
            if self._unread > MAX_EVENT_BYTES and self._peer.watch is not None:
                self._peer.unwatch()
                self.transport.write(GAP)

    def writable(self, yes: bool) -> None:
        """Whether the peer reads what we write. While it does not, nothing more is read from it either."""
        self._blocked = not yes
        if yes:
            self._unread = 0  # not otherwise: a full transport says so with every write
        self._turns.hold(self._blocked)
        self._flow()

    def _congested(self, yes: bool) -> None:
        self._full = yes
        self._flow()

    def _flow(self) -> None:
        stop = self._blocked or self._full
        if stop != self._paused and not self._lost:
            self._paused = stop
            if not self._ended:
                if stop:
                    self.transport.pauseProducing()
                else:
                    self.transport.resumeProducing()
        if not stop:
            self._read()

    # calls

    def _start(self, call: Call) -> None:
        Deferred.fromCoroutine(self._perform(call))

    async def _perform(self, call: Call) -> None:
        try:
            if self._draining:
                raise Draining("this server is stopping; connect again", retry_after=1)
            answer = await self._actions.perform(self._peer, call.action, call.request)
            if isinstance(answer, Then):
                call.succeed(answer.reply)
                answer.after()
            else:
                call.succeed(answer)
        except TaskdError as e:
            call.fail(e)
        except Exception:
            self._log.failure("{action} failed", action=call.action.name)
            if not call.answered:
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
            waiting, self._empty = self._empty, []
            for done in waiting:
                done.callback(None)

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
