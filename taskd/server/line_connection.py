"""The line protocol over any Twisted transport: bytes to requests and back, with backpressure both ways."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
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

from taskd.api.core import Api, internal_error
from taskd.api.principal import Principal
from taskd.api.reply import Reply
from taskd.api.reply_limiter import ReplyLimiter, ReplySlots
from taskd.api.subscriptions import Subscriptions
from taskd.model.errors import BadJson, TaskdError, TooLarge
from taskd.protocol.framing import Framer
from taskd.protocol.limits import MAX_LINE_BYTES
from taskd.server.pipeline import Call, RequestPipeline

MAX_EVENT_BYTES = 1024 * 1024
"""Bytes of events to keep for a client that does not read. With more its watch ends with a ``gap`` event."""

_POST = re.compile(rb"POST \S+ HTTP/\d")
"""The only request with a body that a page of any origin can have a browser send, with its text unchanged."""

CLOSE_SECONDS = 5.0
"""How long a client may take to read its last replies when the server is stopping; then the connection is aborted."""

LINGER_SECONDS = 300.0
"""The same when the client has ended the conversation."""


@implementer(IHalfCloseableProtocol)
class LineConnection(LineReceiver):
    """One client. A client that only writes (``printf ... | nc``) gets its answers before the connection is closed.

    It reads nothing from a client that does not read its replies, or that has enough requests under way. A Framer cuts
    the lines: LineReceiver itself copies its whole buffer for each line, searches it again for each chunk (Twisted
    #6357), and takes what follows an overlong line for a part of it.
    """

    _log = Logger()
    transport: Any
    _principal: Principal
    _pipeline: RequestPipeline

    def __init__(self, api: Api, clock: IReactorTime, factory: LineFactory) -> None:
        self._api = api
        self._clock = clock
        self._factory = factory
        self._limiter = ReplyLimiter(clock, factory.reply_slots)
        self._subscriptions = Subscriptions(self._send_events, self._limiter)
        self._framer = Framer()
        self._lines: deque[bytes | None] = deque()
        self._had_line = False
        self._reading = False
        self._paused = False
        self._ended = False
        self._blocked = False
        self._full = False
        self._unread_events = 0
        self._linger = LINGER_SECONDS
        self._lost = False
        self._closer: IDelayedCall | None = None

    # from the transport

    def connectionMade(self) -> None:
        self._factory.connections.add(self)
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpKeepAlive(True)
            self.transport.setTcpNoDelay(True)
        self._principal = Principal(address=getattr(self.transport.getPeer(), "host", None))
        self._pipeline = RequestPipeline(self._start, self.transport.write, self._congested)
        self.transport.registerProducer(_WriteFlow(self), True)

    def lineReceived(self, line: bytes) -> None:
        if not self._had_line and _POST.match(line):
            # each line of the page's text would be a request, sent from inside the browser's network
            self._pipeline.refuse(BadJson("this port speaks lines of JSON, not HTTP; see docs/protocol.md"))
            self._pipeline.close(self._close)
        else:
            self._pipeline.receive(line)
        self._had_line = True

    def lineLengthExceeded(self, line: bytes) -> None:
        text = f"the line is longer than {MAX_LINE_BYTES} bytes; send less in one, or several new_tasks"
        self._pipeline.refuse(TooLarge(text))

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
        self._factory.lost(self)
        self._lines.clear()
        self._pipeline.abandon()
        self._subscriptions.close()
        self._limiter.close()
        if self._closer is not None:
            self._closer.cancel()
            self._closer = None

    def _read(self) -> None:
        """Take the lines that have arrived, as far as the client reads and the pipeline takes more."""
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
            self._pipeline.close(self._close)

    # to the transport

    def drain(self) -> None:
        """The server is stopping: answer the requests under way, then close."""
        self._linger = CLOSE_SECONDS
        self._subscriptions.drain()
        self._pipeline.close(self._close)

    def abort(self) -> None:
        """Cut the connection."""
        self.transport.abortConnection()

    def _close(self) -> None:
        if self._lost:
            return
        if self._closer is not None:
            self._closer.reset(self._linger)
            return
        self._subscriptions.close()
        self._closer = self._clock.callLater(self._linger, self._close_timed_out)
        # or the transport would wait for the producer before it closes
        self.transport.unregisterProducer()
        self.transport.loseConnection()

    def _close_timed_out(self) -> None:
        self._closer = None
        self.abort()

    def _send_events(self, events: Sequence[bytes]) -> None:
        if self._lost:
            return
        data = b"\n".join(events) + b"\n"
        self.transport.write(data)
        if self._blocked:
            self._unread_events += len(data)
            if self._unread_events > MAX_EVENT_BYTES:
                self._subscriptions.end_watch_with_gap()

    def writable(self, yes: bool) -> None:
        """Whether the client reads what the server writes. While it does not, the server reads no more requests."""
        self._blocked = not yes
        if yes:
            self._unread_events = 0  # not otherwise: a full transport reports it with every write
        self._limiter.pause(self._blocked)
        self._update_reading()

    def _congested(self, yes: bool) -> None:
        self._full = yes
        self._update_reading()

    def _update_reading(self) -> None:
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
        performed = self._api.perform(self._principal, self._subscriptions, call.action, call.request)
        done = Deferred.fromCoroutine(performed)
        done.addCallbacks(self._succeeded, self._failed, callbackArgs=(call,), errbackArgs=(call,))

    def _succeeded(self, reply: Reply, call: Call) -> None:
        try:
            if reply.principal is not None:
                self._principal = reply.principal
            call.succeed(reply.fields)
            if reply.after_sent is not None:
                reply.after_sent()
        except Exception:
            self._broken(Failure(), call)

    def _failed(self, failure: Failure, call: Call) -> None:
        error = failure.value
        try:
            if not isinstance(error, TaskdError):
                failure.raiseException()
            call.fail(error)
        except Exception:
            self._broken(Failure(), call)

    def _broken(self, failure: Failure, call: Call) -> None:
        """A reply that cannot be encoded, or another defect behind the api."""
        self._log.failure("{action} failed", failure, action=call.action.name)
        if not call.answered:
            call.fail(internal_error(call.action))


@implementer(IPushProducer)
class _WriteFlow:
    """The transport tells it when its write buffer fills and empties. The connection itself has methods of the same
    names, which pause *reading*."""

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

    def __init__(self, api: Api, clock: IReactorTime) -> None:
        self._api = api
        self._clock = clock
        self.connections: set[LineConnection] = set()
        self.reply_slots = ReplySlots()
        self._empty: list[Deferred[None]] = []
        self._draining = False

    def buildProtocol(self, addr: Any) -> LineConnection | None:
        if self._draining:
            return None
        connection = LineConnection(self._api, self._clock, self)
        connection.factory = self
        return connection

    def drain(self) -> None:
        """Close every connection once its requests are answered, also those that are only just being accepted."""
        self._draining = True
        for connection in tuple(self.connections):
            connection.drain()

    def lost(self, connection: LineConnection) -> None:
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
