"""One connection to a taskd server: it matches replies to requests by their ids and passes events to a listener."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn, TypeAlias, TypeVar

import msgspec
from twisted.internet import error
from twisted.internet.defer import Deferred, DeferredList, fail
from twisted.internet.interfaces import (
    IDelayedCall,
    IHandshakeListener,
    IReactorTime,
    ISSLTransport,
    IStreamClientEndpoint,
    ITCPTransport,
)
from twisted.internet.protocol import Factory
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure
from zope.interface import implementer

from taskd.client.connection_errors import is_tls_alert, lost_error, os_reason
from taskd.client.errors import ClientError, ConnectionFailed, NeedsTls, NotLoggedIn, Refused
from taskd.client.messages import Message, Received
from taskd.client.privacy import is_private
from taskd.protocol.actions import ACTIONS
from taskd.protocol.limits import MAX_LINE_BYTES, MAX_REPLY_BYTES
from taskd.tls.problems import ICertificateListener, Problem

CONNECT_SECONDS = 10.0
REPLY_SECONDS = 60.0
"""How long a reply may take. A login on a busy server takes longest, because of bcrypt."""

KEEPALIVE_SECONDS = 30.0
"""Seconds between two pings on a connection that only receives events. Without them, nobody would notice that the
server has disappeared."""

_T = TypeVar("_T")


def read(line: bytes, kind: type[_T], server: str) -> _T:
    """Decode a line of the server, or a part of it. Raises ConnectionFailed if it does not have that form."""
    try:
        return msgspec.json.decode(line, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise ConnectionFailed("not_taskd", transient=False, server=server) from None


def ignore(failure: Failure) -> None:
    """Errback for a request whose failure changes nothing, or is reported by another request."""


SECRET = frozenset(action.name for action in ACTIONS.values() if action.secret)
"""Actions whose request or reply has a secret."""

_encode = msgspec.json.Encoder().encode


@implementer(IHandshakeListener, ICertificateListener)
class Connection(LineReceiver):
    """The client's end of a connection. ``server`` is the address that the user knows; errors name it.

    ``on_event`` is called with each event. An exception that it raises ends the connection and is the reason that
    :meth:`wait_until_lost` gives. ``on_session_ended`` is called instead when the session has ended elsewhere; unless
    somebody replaces it, it ends the connection.

    It sends no password, token or other secret where others on the network could read it, unless ``allow_plaintext``.
    """

    transport: Any
    delimiter = b"\n"
    MAX_LENGTH = MAX_REPLY_BYTES

    def __init__(self, clock: IReactorTime, server: str, allow_plaintext: bool = False) -> None:
        self._clock = clock
        self._server = server
        self._pending: dict[int, Deferred[Received]] = {}
        self._last_id = 0
        self._may_be_secret = allow_plaintext
        self._is_taskd = False
        self._closing = False
        self._timer: IDelayedCall | None = None
        self._loss: Deferred[None] | None = None
        self._problem: Problem | None = None
        self.lost: Exception | None = None
        """Why the connection ended; None while it is open."""
        self.on_event: EventListener | None = None
        self.on_session_ended: Callable[[], None] = self._session_ended

    def connectionMade(self) -> None:
        self._may_be_secret = self._may_be_secret or is_private(self.transport)
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
            self.transport.setTcpKeepAlive(True)
        if ISSLTransport.providedBy(self.transport):  # TCP is connected, but the TLS handshake has not begun
            self._timer = self._clock.callLater(CONNECT_SECONDS, self._no_handshake)

    def handshakeCompleted(self) -> None:
        self._stop_timer()

    def certificate_refused(self, problem: Problem) -> None:
        """The TLS below refuses the server: the reason for the end that follows."""
        self._problem = problem

    def request(self, action: str, /, reply_timeout: float = REPLY_SECONDS, **fields: Any) -> Deferred[Received]:
        """Send one request without waiting for earlier replies. ``reply_timeout`` is in seconds.

        The Deferred fails with Refused, or with another ClientError if there is no reply. Raises NeedsTls if it has
        a secret that others could read, and another ClientError if it cannot be encoded or is too long.
        """
        if action in SECRET and not self._may_be_secret:
            raise NeedsTls(self._server)
        request_id = self._last_id + 1
        try:
            line = _encode({"action": action, "id": request_id, **fields})
        except UnicodeEncodeError:  # the command line or the environment had bytes that are not text
            raise ClientError("not_text") from None
        except RecursionError:
            raise ClientError("too_deep") from None
        if len(line) > MAX_LINE_BYTES:
            raise ClientError("line_too_large", code="too_large", limit=MAX_LINE_BYTES)
        if self.lost is not None:
            return fail(self.lost)
        self._last_id = request_id
        answer: Deferred[Received] = Deferred(partial(self._cancelled, request_id))
        answer.addTimeout(reply_timeout, self._clock, self._no_reply)
        self._pending[request_id] = answer
        self.transport.write(line + b"\n")
        return answer

    def close(self) -> None:
        """End the connection. Pending requests fail."""
        self._closing = True
        self._stop_timer()
        self.transport.loseConnection()

    def close_when_answered(self) -> None:
        """End the connection once every pending request has its reply. Drop events from now on."""
        self.on_event = None
        DeferredList(self._pending.values()).addCallback(lambda _: self.close())

    def keep_alive(self) -> None:
        """Send a ping every KEEPALIVE_SECONDS from now on. A ping without a reply ends the connection."""
        if not self._closing:
            self._timer = self._clock.callLater(KEEPALIVE_SECONDS, self._ping)

    def wait_until_lost(self) -> Deferred[None]:
        """A Deferred that fails with the reason once the connection is lost. It never fires after :meth:`close`.

        Only the Deferred of the newest call fires.
        """
        if self.lost is not None:
            return fail(self.lost)
        self._loss = Deferred()
        return self._loss

    def abort(self, reason: Exception) -> None:
        """End the connection at once. Pending requests and :meth:`wait_until_lost` fail with this reason."""
        if self.lost is None:
            self._fail(reason)
            self.transport.abortConnection()

    def abort_on(self, failure: Failure) -> None:
        """Errback: :meth:`abort` with the failure's exception."""
        reason: Any = failure.value
        self.abort(reason)

    def lineReceived(self, line: bytes) -> None:
        if self.lost is not None:
            return
        try:
            body = read(line, Message, self._server)
        except ConnectionFailed:
            body = Message()
        received = Received(line.rstrip(b"\r"), body)
        if body.event is not None:
            self._event(received)
        elif body.ok is None:
            self._not_taskd()
        else:
            self._is_taskd = True
            self._answered(received)

    def lineLengthExceeded(self, line: bytes) -> None:
        self._not_taskd()

    def connectionLost(self, reason: Failure = Failure(error.ConnectionDone())) -> None:  # noqa: B008 (the base's signature)
        if self.lost is None:
            if not self._is_taskd and is_tls_alert(self.clearLineBuffer()):
                self._fail(ConnectionFailed("needs_tls", transient=False, nothing_done=True, server=self._server))
            else:
                self._fail(lost_error(reason, self._server, self._is_taskd, self._problem))

    def _answered(self, received: Received) -> None:
        request_id = received.body.id
        if request_id is None and not received.body.ok:
            # The server could not read the id of the request, so no pending request can trust its reply
            self._fail_pending(Refused(received))
            return
        if not isinstance(request_id, int) or request_id not in self._pending:
            return  # the request was cancelled
        answer = self._pending.pop(request_id)
        if received.body.ok:
            answer.callback(received)
        else:
            answer.errback(Refused(received))

    def _cancelled(self, request_id: int, _: Deferred[Received]) -> None:
        del self._pending[request_id]

    def _fail_pending(self, reason: Exception) -> None:
        for request_id in tuple(self._pending):
            if request_id in self._pending:  # the errback of another request may have cancelled it
                self._pending.pop(request_id).errback(reason)

    def _no_reply(self, result: object, seconds: float) -> NoReturn:
        reason = ConnectionFailed("no_answer", server=self._server)
        self.abort(reason)
        raise reason

    def _no_handshake(self) -> None:
        self.abort(ConnectionFailed("tls_silent", server=self._server, seconds=f"{CONNECT_SECONDS:g}"))

    def _ping(self) -> None:
        self.request("ping").addCallbacks(lambda _: self.keep_alive(), ignore)

    def _stop_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    def _session_ended(self) -> None:
        self.abort(NotLoggedIn("session_gone", nothing_done=False, server=self._server))

    def _event(self, received: Received) -> None:
        if received.body.event == "session_ended":
            self.on_session_ended()
            return
        if self.on_event is None:
            return
        try:
            self.on_event(self, received)
        except Exception as e:
            self.abort(e)

    def _not_taskd(self) -> None:
        self.abort(ConnectionFailed("not_taskd", transient=False, nothing_done=not self._is_taskd, server=self._server))

    def _fail(self, reason: Exception) -> None:
        if self.lost is not None:
            return
        self.lost = reason
        self._stop_timer()
        self._fail_pending(reason)
        if self._loss is not None and not self._closing:
            self._loss.errback(reason)


EventListener: TypeAlias = Callable[[Connection, Received], None]
"""Called with each event and the connection that it came on."""


async def connect(
    endpoint: IStreamClientEndpoint, clock: IReactorTime, server: str, allow_plaintext: bool = False
) -> Connection:
    """Open a connection. Raises ConnectionFailed."""
    factory = Factory.forProtocol(partial(Connection, clock, server, allow_plaintext))
    factory.noisy = False
    attempt = endpoint.connect(factory)
    attempt.addTimeout(CONNECT_SECONDS, clock, _timed_out)
    try:
        connection = await attempt
    except error.DNSLookupError:
        raise ConnectionFailed("dns_failed", server=server) from None
    except (error.ConnectionRefusedError, ConnectionRefusedError):
        raise ConnectionFailed("refused_connection", server=server) from None
    except (error.TimeoutError, TimeoutError):
        raise ConnectionFailed("connect_timeout", server=server, seconds=f"{CONNECT_SECONDS:g}") from None
    except (OSError, ValueError, error.ConnectError) as e:
        raise ConnectionFailed("unreachable", server=server, why=os_reason(e)) from None
    assert isinstance(connection, Connection)
    return connection


def _timed_out(result: Any, seconds: float) -> Any:
    # An endpoint may answer its cancellation with any error
    if isinstance(result, Failure):
        raise error.TimeoutError()
    return result
