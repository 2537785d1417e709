"""One connection to a taskd: requests matched to their replies by id, events to a callback."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import msgspec
from msgspec import Raw, Struct
from twisted.internet import error
from twisted.internet.defer import Deferred, fail
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

from taskd.client.connection_errors import os_reason, why_lost
from taskd.client.errors import ClientError, ConnectionTrouble, Refused
from taskd.protocol.limits import MAX_LINE_BYTES, MAX_REPLY_BYTES

CONNECT_SECONDS = 10.0
REPLY_SECONDS = 60.0
"""How long an answer may take; bcrypt on a busy server takes the longest."""

CHECK_SECONDS = 30.0
"""How often a connection that only listens is checked; without that one that died silently would look quiet."""


class Message(Struct):
    """What a reply or an event may hold. Tasks stay as they came, to be shown or passed on."""

    id: Any = None
    ok: bool | None = None
    event: str | None = None
    status: str = ""
    code: str | None = None
    field: str | None = None
    message: str = ""
    retry_after: float | None = None
    token: str = ""
    username: str = ""
    task_id: int = 0
    task_ids: list[int] = []
    duplicate: bool = False
    duplicates: list[int] = []
    task: Raw = Raw(b"null")
    tasks: list[Raw] = []
    cursor: str | None = None
    done: bool = False


class Received(NamedTuple):
    """One line of the server, without its end, and what it says."""

    line: bytes
    body: Message


_T = TypeVar("_T")


def read(line: bytes, decode: Callable[[bytes], _T], server: str) -> _T:
    """What a line, or a part of it, says to a command that knows more of it. Raises ConnectionTrouble."""
    try:
        return decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise ConnectionTrouble("not_taskd", transient=False, server=server) from None


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Message).decode


class _Pending(NamedTuple):
    answer: Deferred[Received]
    timer: IDelayedCall


@implementer(IHandshakeListener)
class LineClient(LineReceiver):
    """The client's end. ``server`` is its address as the user knows it, for error messages.

    ``on_event`` gets each event; what it raises ends the connection and comes out of :meth:`gone`.
    """

    transport: Any
    delimiter = b"\n"
    MAX_LENGTH = MAX_REPLY_BYTES

    def __init__(self, clock: IReactorTime, server: str) -> None:
        self._clock = clock
        self._server = server
        self._pending: dict[int, _Pending] = {}
        self._last_id = 0
        self._spoken = False
        self._closing = False
        self._finishing = False
        self._timer: IDelayedCall | None = None
        self._close_waiters: list[Deferred[None]] = []
        self.lost: Exception | None = None
        self.on_event: Callable[[LineClient, Received], None] = lambda client, received: None

    def connectionMade(self) -> None:
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
            self.transport.setTcpKeepAlive(True)
        if ISSLTransport.providedBy(self.transport):  # TCP is there, but no byte of TLS has been exchanged yet
            self._timer = self._clock.callLater(CONNECT_SECONDS, self._no_handshake)

    def handshakeCompleted(self) -> None:
        self._stop_timer()

    def request(self, action: str, /, patience: float = REPLY_SECONDS, **fields: Any) -> Deferred[Received]:
        """Send one request; several may be under way. ``patience`` is in seconds.

        The Deferred fails with Refused, or with another ClientError when there is no answer. Raises ClientError
        for what cannot be sent at all.
        """
        try:
            line = _encode({"action": action, "id": self._last_id + 1, **fields})
        except UnicodeEncodeError:  # bytes of the command line or the environment that were no text
            raise ClientError("not_text") from None
        except RecursionError:
            raise ClientError("too_deep") from None
        if len(line) > MAX_LINE_BYTES:
            raise ClientError("line_too_large", code="too_large", limit=MAX_LINE_BYTES)
        if self.lost is not None:
            return fail(self.lost)
        self._last_id = request_id = self._last_id + 1
        answer: Deferred[Received] = Deferred(lambda _: self._give_up(request_id))
        timer = self._clock.callLater(patience, self._expired)
        self._pending[request_id] = _Pending(answer, timer)
        self.transport.write(line + b"\n")
        return answer

    def close(self) -> None:
        """End the connection; what is not answered yet never will be."""
        self._closing = True
        self._stop_timer()
        self.transport.loseConnection()

    def finish(self) -> None:
        """End the connection once everything that is under way has been answered; events are of no use any more."""
        self._finishing = True
        self.on_event = lambda client, received: None
        self._close_if_finished()

    def check_often(self) -> None:
        """From now on ask for a sign of life every CHECK_SECONDS; :meth:`gone` hears when there is none."""
        if not self._closing:
            self._timer = self._clock.callLater(CHECK_SECONDS, self._check)

    def gone(self) -> Deferred[None]:
        """Fails with the reason once the connection is lost; never fires when :meth:`close` ended it."""
        if self.lost is not None:
            return fail(self.lost)
        gone: Deferred[None] = Deferred(self._close_waiters.remove)
        self._close_waiters.append(gone)
        return gone

    def abandon(self, why: Exception) -> None:
        """End the connection for a reason that all who wait for it shall hear."""
        if self.lost is None:
            self._fail(why)
            self.transport.abortConnection()

    def failed(self, failure: Failure) -> None:
        """The same as an errback."""
        self.abandon(failure.value if isinstance(failure.value, Exception) else RuntimeError(str(failure)))

    def lineReceived(self, line: bytes) -> None:
        if self.lost is not None:
            return
        try:
            body = _decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            self._not_taskd()
            return
        received = Received(line.rstrip(b"\r"), body)
        if body.event is not None:
            self._event(received)
        elif body.ok is None:
            self._not_taskd()
        else:
            self._spoken = True
            self._answered(received)

    def lineLengthExceeded(self, line: bytes) -> None:
        self._not_taskd()

    def connectionLost(self, reason: Failure = Failure(error.ConnectionDone())) -> None:  # noqa: B008 (the base's signature)
        self._fail(self.lost or why_lost(reason, self._server, self._spoken))

    def _answered(self, received: Received) -> None:
        request_id = received.body.id
        if request_id is None and not received.body.ok:
            # The server could not tell which request it was, so none of them has a sure answer
            for request_id in tuple(self._pending):
                self._forget(request_id).errback(Refused(received))
            return
        if not isinstance(request_id, int) or request_id not in self._pending:
            return  # an answer to a request that was given up
        answer = self._forget(request_id)
        if received.body.ok:
            answer.callback(received)
        else:
            answer.errback(Refused(received))

    def _forget(self, request_id: int) -> Deferred[Received]:
        answer, timer = self._pending.pop(request_id)
        if timer.active():
            timer.cancel()
        self._close_if_finished()
        return answer

    def _close_if_finished(self) -> None:
        if self._finishing and not self._pending:
            self.close()

    def _give_up(self, request_id: int) -> None:
        self._forget(request_id)

    def _expired(self) -> None:
        self.abandon(ConnectionTrouble("no_answer", server=self._server))

    def _no_handshake(self) -> None:
        self.abandon(ConnectionTrouble("tls_silent", server=self._server, seconds=f"{CONNECT_SECONDS:g}"))

    def _check(self) -> None:
        self.request("ping").addCallbacks(lambda _: self.check_often(), lambda _: None)

    def _stop_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    def _event(self, received: Received) -> None:
        try:
            self.on_event(self, received)
        except Exception as e:
            self.abandon(e)

    def _not_taskd(self) -> None:
        self.abandon(ConnectionTrouble("not_taskd", transient=False, undone=not self._spoken, server=self._server))

    def _fail(self, why: Exception) -> None:
        if self.lost is not None:
            return
        self.lost = why
        self._stop_timer()
        for request_id in tuple(self._pending):
            if request_id in self._pending:
                self._forget(request_id).errback(why)
        waiters, self._close_waiters = self._close_waiters, []
        if not self._closing:
            for gone in waiters:
                gone.errback(why)


async def connect(endpoint: IStreamClientEndpoint, clock: IReactorTime, server: str) -> LineClient:
    """Open a connection. Raises ConnectionTrouble."""
    factory = Factory.forProtocol(lambda: LineClient(clock, server))
    factory.noisy = False
    attempt = endpoint.connect(factory)
    attempt.addTimeout(CONNECT_SECONDS, clock, lambda result, seconds: _timed_out(result))
    try:
        protocol = await attempt
    except error.DNSLookupError:
        raise ConnectionTrouble("dns_failed", server=server) from None
    except (error.ConnectionRefusedError, ConnectionRefusedError):
        raise ConnectionTrouble("refused_connection", server=server) from None
    except (error.TimeoutError, TimeoutError):
        raise ConnectionTrouble("connect_timeout", server=server, seconds=f"{CONNECT_SECONDS:g}") from None
    except (OSError, ValueError, error.ConnectError) as e:
        raise ConnectionTrouble("unreachable", server=server, why=os_reason(e)) from None
    assert isinstance(protocol, LineClient)
    return protocol


def _timed_out(result: Any) -> Any:
    if isinstance(result, Failure):
        raise error.TimeoutError()
    return result
