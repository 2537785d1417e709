"""The line protocol over any Twisted transport: bytes to requests and back, with backpressure both ways."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IDelayedCall,
    IHalfCloseableProtocol,
    IHandshakeListener,
    IPushProducer,
    IReactorTime,
    ISSLTransport,
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
from taskd.api.tarpit import CutOff
from taskd.config import DEFAULT_LIMITS, ConnectionLimits
from taskd.model.errors import TaskdError, TooLarge
from taskd.protocol.framing import Framer
from taskd.protocol.limits import MAX_LINE_BYTES
from taskd.server.admission import FULL, Admission
from taskd.server.deadlines import Deadlines
from taskd.server.first_line import CLOSED, refusal
from taskd.server.flood_log import FloodLog
from taskd.server.idle import IdleSweep
from taskd.server.peer import peer_uid
from taskd.server.pipeline import Call, RequestPipeline
from taskd.server.privacy import is_private
from taskd.server.proxy_header import ToldAddress
from taskd.server.unread import UnreadBytes

MAX_EVENT_BYTES = 1024 * 1024
"""Bytes of events to keep for a client that does not read. With more its watch ends with a ``gap`` event."""

_BLANKS = b" \t\r"
"""White space that may come before the first object, on its line."""

CLOSE_SECONDS = 5.0
"""How long a client may take to read its last replies when the server ends the conversation; then the connection is
aborted."""

MAX_CLOSING = 32
"""Connections above the limit that take the place of others, which are about to be closed."""

LINGER_SECONDS = 300.0
"""The same when the client has ended the conversation."""


@implementer(IHalfCloseableProtocol, IHandshakeListener)
class LineConnection(LineReceiver):
    """One client. A client that only writes (``printf ... | nc``) gets its answers before the connection is closed.

    It reads nothing from a client that does not read its replies, or that has enough requests under way. A Framer cuts
    the lines: LineReceiver itself copies its whole buffer for each line, searches it again for each chunk (Twisted
    #6357), and takes what follows an overlong line for a part of it.
    """

    _log = Logger()
    transport: Any
    _pipeline: RequestPipeline

    def __init__(self, api: Api, clock: IReactorTime, factory: LineFactory, address: Any = None) -> None:
        self._api = api
        self._clock = clock
        self._factory = factory
        self._told = address if isinstance(address, ToldAddress) else None
        self._principal = Principal(address=getattr(address, "host", None))
        self._limiter = ReplyLimiter(clock, factory.reply_slots)
        self._subscriptions = Subscriptions(self._send_events, self._limiter, self._admit)
        self._subscriptions.on_end = self._session_ended
        self._framer = Framer()
        self._lines: deque[bytes | None] = deque()
        self._blanks: int | None = 0
        """How many blanks have come, until something else comes."""
        self._had_line = False
        self._refused = False
        self.quiet = 0
        """At how many sweeps nothing had come since the one before."""
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
        address = self._principal.address or getattr(self.transport.getPeer(), "host", None)
        limits = self._factory.limits
        private = limits.allow_plaintext or is_private(self.transport, limits.trusted_proxies, self._told)
        # a balancer has connected itself, and its own uid says nothing about its clients
        uid = peer_uid(self.transport) if self._told is None else None
        self._principal = Principal(address=address, private=private, uid=uid)
        self._pipeline = RequestPipeline(self._start, self._write, self._congested)
        self.transport.registerProducer(_WriteFlow(self), True)
        if ISSLTransport.providedBy(self.transport):
            # TCP is connected, but the TLS handshake has not begun
            self._factory.handshakes.add(self)
        self._factory.admission.enter(self)

    def handshakeCompleted(self) -> None:
        self._factory.handshakes.discard(self)

    def lineReceived(self, line: bytes) -> None:
        self._pipeline.receive(line)

    def lineLengthExceeded(self, line: bytes) -> None:
        self._pipeline.refuse(_line_too_long())

    def dataReceived(self, data: bytes) -> None:
        self.quiet = 0
        if not self._had_line:
            self._opening(data)
        elif not self._refused:
            self._lines.extend(self._framer.feed(data))
            self._read()

    def _opening(self, data: bytes) -> None:
        """Take what comes until the first line is complete. Nothing after a wrong first line is read."""
        if self._refused:
            return
        if self._blanks is not None:
            start = data.lstrip(_BLANKS)
            self._blanks += len(data) - len(start)
            if self._blanks > MAX_LINE_BYTES:
                self._refuse_first_line(_line_too_long(CLOSED))
                return
            if not start:
                return
            error = refusal(data if data.startswith(b"\r") else start)
            if error is not None:
                self._refuse_first_line(error)
                return
            self._blanks = None
        lines = self._framer.feed(data)
        if lines:
            self._had_line = True
            if lines[0] is None:
                self._refuse_first_line(_line_too_long(CLOSED))
                return
            self._lines.extend(lines)
            self._read()

    def _refuse_first_line(self, error: TaskdError) -> None:
        self._factory.refusals.note("its first line is not a JSON object", self.address)
        self.refuse(error)

    def readConnectionLost(self) -> None:
        if not self._ended and not self._refused:
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
        self._factory.admission.leave(self, self._principal.user_id)
        self._lines.clear()
        self._pipeline.abandon()
        self._subscriptions.close()
        self._limiter.close()
        if self._closer is not None:
            self._closer.cancel()
            self._closer = None
        # this object waits for the garbage collector; the transport's buffer, which may be large, must not
        self.transport = None

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

    @property
    def address(self) -> str | None:
        """Where the client is, None for a connection without an address."""
        return self._principal.address

    @property
    def busy(self) -> bool:
        """Whether a request waits for its answer."""
        return self._pipeline.busy or bool(self._lines)

    @property
    def logged_in(self) -> bool:
        """Whether the client has logged in."""
        return self._principal.user_id != 0

    # to the transport

    def refuse(self, error: TaskdError) -> None:
        """Read nothing more; send this error after the replies to what is under way, and close."""
        self._stop_reading()
        if self._factory.handshakes.discard(self):
            # the error could be sent only after the handshake, for which a flood would wait
            self.abort()
            return
        self._pipeline.refuse(error)
        self._pipeline.close(self._close)

    def leave_idle(self) -> None:
        """The client has been idle for too long: close, if it is not being closed already."""
        if self._closer is not None:
            return
        self._factory.refusals.note("it was idle for too long", self.address)
        self._stop_reading()
        self._pipeline.close(self._close)

    def cut(self) -> None:
        """The client does not read: close now and free what is kept for it."""
        if self._lost:
            return
        self._stop_reading()
        self._pipeline.abandon()
        self._subscriptions.close()
        self.abort()

    def _stop_reading(self) -> None:
        self._refused = True
        self._linger = CLOSE_SECONDS
        self._lines.clear()
        self._framer = Framer()

    def drain(self) -> None:
        """The server is stopping: answer the requests under way, then close."""
        self._linger = CLOSE_SECONDS
        self._subscriptions.drain()
        self._pipeline.close(self._close)

    def abort(self) -> None:
        """Cut the connection, if it is not lost already."""
        if not self._lost:
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

    def _write(self, data: bytes) -> None:
        self.transport.write(data)
        if self._blocked:
            self._factory.unread.add(self, self._principal.user_id, len(data))

    def _send_events(self, events: Sequence[bytes]) -> None:
        if self._lost:
            return
        data = b"\n".join(events) + b"\n"
        self._write(data)
        if self._blocked:
            self._unread_events += len(data)
            if self._unread_events > MAX_EVENT_BYTES:
                self._subscriptions.end_watch_with_gap()

    def writable(self, yes: bool) -> None:
        """Whether the client reads what the server writes. While it does not, the server reads no more requests."""
        self._blocked = not yes
        if yes:
            self._unread_events = 0  # not otherwise: a full transport reports it with every write
            self._factory.unread.clear(self)
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
            if reply.principal is not None and not self._lost:
                self._become(reply.principal)
            call.succeed(reply.fields)
            if reply.after_sent is not None:
                reply.after_sent()
        except Exception:
            self._broken(Failure(), call)

    def _become(self, principal: Principal) -> None:
        """The client logs in or out."""
        self._factory.admission.log_in(self, self._principal.user_id, principal.user_id)
        held = self._factory.unread.clear(self)
        self._principal = principal
        if held:
            self._factory.unread.add(self, principal.user_id, held)

    def _session_ended(self) -> None:
        """The session has ended elsewhere: the connection counts no more for its user, and has the time of a stranger
        to log in again."""
        if not self._lost:
            self._become(self._principal.logged_out())

    def _admit(self, user_id: int) -> None:
        """This user is about to log in here. Raises RateLimited."""
        self._factory.admission.check(self, self._principal.user_id, user_id)

    def _failed(self, failure: Failure, call: Call) -> None:
        error = failure.value
        try:
            if not isinstance(error, TaskdError):
                failure.raiseException()
            if error.detail:
                self._factory.troubles.note(error.message, self.address, error.detail)
            if isinstance(error, CutOff):
                self._factory.refusals.note("too many logins that were refused wait", self.address)
                self.cut()
                return
            call.fail(error)
        except Exception:
            self._broken(Failure(), call)

    def _broken(self, failure: Failure, call: Call) -> None:
        """A reply that cannot be encoded, or another defect behind the api."""
        self._log.failure("{action} failed", failure, action=call.action.name)
        if not call.answered:
            call.fail(internal_error(call.action))


def _line_too_long(more: str = "") -> TooLarge:
    return TooLarge(f"the line is longer than {MAX_LINE_BYTES} bytes; send less in one, or several new_tasks{more}")


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
    """Makes a connection for each client. It refuses more than ``max_connections`` at a time, if that is not None."""

    noisy = False

    def __init__(
        self,
        api: Api,
        clock: IReactorTime,
        limits: ConnectionLimits = DEFAULT_LIMITS,
        max_connections: int | None = None,
    ) -> None:
        self._api = api
        self._clock = clock
        self.limits = limits
        self._max = max_connections
        if max_connections is not None:
            # no user can take all
            most = max(1, max_connections // 2)
            limits = msgspec.structs.replace(limits, user_connections=min(limits.user_connections, most))
        self.connections: set[LineConnection] = set()
        self.reply_slots = ReplySlots()
        self.refusals = FloodLog(clock, "closed a connection")
        self.troubles = FloodLog(clock, "did not carry out a request")
        self.admission = Admission(clock, limits, self.refusals)
        self.unread = UnreadBytes(limits.user_unread, limits.unread, self.refusals)
        self.handshakes: Deadlines[LineConnection] = Deadlines(clock, limits.handshake_seconds, self._no_handshake)
        self._idle = IdleSweep(clock, limits.idle_seconds, self.connections)
        self._empty: list[Deferred[None]] = []
        self._draining = False

    def buildProtocol(self, addr: Any) -> LineConnection | None:
        if self._draining:
            return None
        if self._max is not None and not self._has_room(self._max):
            # the files that are left are for the database, the broker and the tasks of an embedded worker
            self.refusals.note(FULL, getattr(addr, "host", None))
            return None
        connection = LineConnection(self._api, self._clock, self, addr)
        connection.factory = self
        self._idle.start()
        return connection

    def _has_room(self, limit: int) -> bool:
        count = len(self.connections)
        return count < limit or (count < limit + MAX_CLOSING and self.admission.make_room())

    def _no_handshake(self, connection: LineConnection) -> None:
        self.refusals.note("no TLS handshake in time", connection.address)
        connection.abort()

    def drain(self) -> None:
        """Close every connection once its requests are answered, also those that are only just being accepted."""
        self._draining = True
        self.refusals.close()
        self.troubles.close()
        for connection in tuple(self.connections):
            connection.drain()

    def lost(self, connection: LineConnection) -> None:
        """A connection is lost."""
        self.connections.discard(connection)
        self.handshakes.discard(connection)
        self.unread.clear(connection)
        if not self.connections:
            self._idle.stop()
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
