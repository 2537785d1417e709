"""One connection to RabbitMQ and its channels, on pika's Twisted adapter. Neither is used again once it has closed.

The class Connection wraps pika's protocol and adds what pika lacks: closing takes bounded time, whichever side starts
it; the reason for the end is known; frames.py reads deliveries without pika. Callers may cancel every Deferred that
they get here, because none of them is one of pika's.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn

from pika import ConnectionParameters, PlainCredentials
from pika.exceptions import AMQPError, ChannelClosed, ConnectionClosed
from twisted.internet.abstract import FileDescriptor
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.internet.protocol import Protocol
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from taskd.broker.rabbitmq.frames import MAX_FRAME, FrameReader, Handler
from taskd.config import RabbitMQ
from taskd.tls.problems import ICertificateListener, Problem

with warnings.catch_warnings():
    # pika 2.0 will drop this adapter: that concerns the developers of taskd, not its users
    warnings.simplefilter("ignore", DeprecationWarning)
    from pika.adapters.twisted_connection import TwistedProtocolConnection

HEARTBEAT = 10
"""Seconds. pika notices a silent peer within two and a half of these intervals."""

BEHIND_SECONDS = 5.0
"""How long RabbitMQ may take to read what is sent before nothing more is. So much gathers in memory at most."""

CLOSE_SECONDS = 2.0
"""How long an orderly close may take before the transport is aborted."""


REFUSED = 403
"""RabbitMQ's reply code for a wrong password and for missing permissions."""

_TLS_ALERT = b"\x15\x03"
"""How a server that expects TLS answers something else: content type 21, version 3.x."""

_LOGIN_HINTS = {REFUSED: "RABBITMQ_USER and RABBITMQ_PASSWORD", 530: "RABBITMQ_VHOST"}
_HINTS = {REFUSED: "the permissions of RABBITMQ_USER"}


class ConnectionLost(Exception):
    """The channel or its connection has closed, or RabbitMQ refused a request.

    ``code`` is RabbitMQ's reply code, 0 if the reason does not come from RabbitMQ. ``hint`` names the setting that may
    be wrong, if any; the text ends with it.
    """

    def __init__(self, reason: str, code: int = 0, hint: str = "") -> None:
        super().__init__(f"{reason} (see {hint})" if hint else reason)
        self.code = code
        self.hint = hint


def as_connection_lost(e: object) -> ConnectionLost:
    """An exception of pika or Twisted as a ConnectionLost with one line of text."""
    if isinstance(e, ConnectionLost):
        return e
    if isinstance(e, ConnectionClosed | ChannelClosed):
        return ConnectionLost(_one_line(e.reply_text), e.reply_code)
    if isinstance(e, AMQPError) and e.args:
        return ConnectionLost(_one_line(e.args[0]))
    if type(e).__module__.startswith("OpenSSL"):  # by name: a plain connection does not import it
        # SSL.Error carries a list of (library, function, reason)
        last = getattr(e, "args", None) and e.args[-1]  # type: ignore[attr-defined]
        why = str(last[-1][-1] if isinstance(last, list) and last else last or "no reason given")
        return ConnectionLost(f"TLS failed: {why}", hint="RABBITMQ_TLS and RABBITMQ_PORT")
    return ConnectionLost(_one_line(e) or type(e).__name__)


def _one_line(text: object) -> str:
    return " ".join(str(text).split())


def no_answer(_: object, seconds: float) -> NoReturn:
    """For ``Deferred.addTimeout``: fail with ConnectionLost."""
    raise ConnectionLost(f"no answer within {seconds:.0f} s")


class Channel:
    """An AMQP channel.

    When it closes, ``close_reason`` is set, ``closed`` fires with it, and every pending call fails with it.
    """

    def __init__(self, raw: Any, connection: Connection, handlers: dict[int, Handler]) -> None:
        self.raw = raw
        self.number: int = raw.channel_number
        self.close_reason: ConnectionLost | None = None
        self.closed: Deferred[ConnectionLost] = Deferred()
        self.connection = connection
        self._handlers = handlers
        self._calls: set[Deferred[Any]] = set()
        raw.add_on_close_callback(self._on_pika_closed)
        raw.add_on_cancel_callback(self._on_consumer_cancelled)

    def call(self, method: str, **arguments: Any) -> Deferred[Any]:
        """Call a method of the raw channel and wait for the reply. Fails with ConnectionLost."""
        if self.close_reason is not None:
            return fail(self.close_reason)
        done: Deferred[Any] = Deferred()
        try:
            getattr(self.raw, method)(callback=partial(self._on_reply, done), **arguments)
        except AMQPError as e:
            return fail(as_connection_lost(e))
        self._calls.add(done)
        return done

    def consume(self, queue: str, handler: Handler, auto_ack: bool) -> Deferred[Any]:
        """Deliver messages of this queue to ``handler``. A channel consumes one queue only."""

        def deliver(_: Any, method: Any, properties: Any, body: bytes) -> None:
            handler(method.delivery_tag, method.redelivered, body)

        self._handlers[self.number] = handler
        return self.call("basic_consume", queue=queue, on_message_callback=deliver, auto_ack=auto_ack)

    def close(self, reason: str) -> None:
        """Close the channel without waiting for the reply."""
        if self.close_reason is None:
            with suppress(AMQPError):
                self.raw.close()
            self._set_closed(ConnectionLost(reason))

    def _on_reply(self, done: Deferred[Any], *reply: Any) -> None:
        if done in self._calls:
            self._calls.remove(done)
            done.callback(reply[0] if reply else None)

    def _on_consumer_cancelled(self, _: Any) -> None:
        self.close("the consumer was cancelled, probably because its queue was deleted")

    def _on_pika_closed(self, _: Any, error: Exception) -> None:
        self._set_closed(self.connection.close_reason or as_connection_lost(error))

    def _set_closed(self, reason: ConnectionLost) -> None:
        if self.close_reason is None:
            self.close_reason = reason
            self._handlers.pop(self.number, None)
            calls, self._calls = self._calls, set()
            for done in calls:
                done.errback(reason)
            self.closed.callback(reason)


class _PikaTransport:
    """The transport that pika gets: pika's request to close goes through Connection, which bounds its time."""

    def __init__(self, transport: Any, close: Callable[[], None]) -> None:
        self.write = transport.write
        self.abortConnection = transport.abortConnection
        self.loseConnection = close


@implementer(IPushProducer, ICertificateListener)
class Connection(Protocol):
    """One TCP connection that speaks AMQP. It is the push producer of its transport, to know when RabbitMQ does not
    read.

    ``opened`` fires when AMQP is ready, and fails with ConnectionLost. ``closed`` fires with the reason when the
    connection has ended; ``close_reason`` is set a little earlier, when it begins to end. While ``blocked`` has a
    reason, RabbitMQ reads nothing that this connection publishes. The callbacks in ``on_blocked`` get the new value
    whenever that changes, and the old one when RabbitMQ reads again after it was slow.
    """

    log = Logger()
    transport: Any

    def __init__(self, clock: IReactorTime, settings: RabbitMQ, name: str) -> None:
        self.opened: Deferred[None] = Deferred()
        self.closed: Deferred[ConnectionLost] = Deferred()
        self.blocked: str | None = None
        self.on_blocked: list[Callable[[str | None], None]] = []
        self.close_reason: ConnectionLost | None = None
        self._clock = clock
        self._logged_in = False
        self._refused: ConnectionLost | None = None
        self._abort_timer: IDelayedCall | None = None
        self._full_since: float | None = None
        self._sleeping: set[Deferred[None]] = set()
        parameters = ConnectionParameters(
            virtual_host=settings.vhost,
            credentials=PlainCredentials(settings.user, settings.password),
            heartbeat=HEARTBEAT,
            frame_max=MAX_FRAME,
            client_properties={"product": "taskd", "connection_name": name},
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            self._pika = TwistedProtocolConnection(parameters, custom_reactor=clock)
        # pika's Twisted classes make a Deferred for each message and lose the cause of a failure; its plain connection
        # and channels, which take callbacks, do not
        self._impl = self._pika._impl
        self._impl.add_on_connection_blocked_callback(self._on_blocked)
        self._impl.add_on_connection_unblocked_callback(self._on_blocked)
        self._pika.ready.addCallbacks(self._on_ready, lambda _: None)
        self._reader = FrameReader(self._pika.dataReceived)

    @property
    def is_open(self) -> bool:
        """Whether channels can be opened and used."""
        return self.close_reason is None and bool(self._impl.is_open)

    @property
    def max_frame(self) -> int:
        """The largest frame in bytes, as agreed with RabbitMQ."""
        return int(self._impl.params.frame_max)

    @property
    def can_publish(self) -> bool:
        """Whether RabbitMQ reads what is published. If it reads slowly, what is sent gathers in memory."""
        return self.is_open and not self.blocked and not self._is_behind()

    def _is_behind(self) -> bool:
        return self._full_since is not None and self._clock.seconds() - self._full_since > BEHIND_SECONDS

    async def call(self, method: str, **arguments: Any) -> Any:
        """The reply to a method on a channel of its own, because a refusal closes the channel. Raises ConnectionLost.

        ``method`` is a method of pika's channel.
        """
        channel = await self.open_channel()
        try:
            return await channel.call(method, **arguments)
        finally:
            channel.close("done")

    def open_channel(self) -> Deferred[Channel]:
        """A new channel. Fails with ConnectionLost."""
        opened: Deferred[Channel] = Deferred()
        if not self.is_open:
            return fail(self.close_reason or ConnectionLost("the connection is closed"))
        try:
            raw = self._impl.channel(on_open_callback=opened.callback)
        except AMQPError as e:
            return fail(as_connection_lost(e))
        channel = Channel(raw, self, self._reader.handlers)
        # RabbitMQ may refuse it, or the connection may close before the reply
        channel.closed.addCallback(lambda reason: reason if opened.called else opened.errback(reason))
        return opened.addCallback(lambda _: channel)

    def sleep(self, seconds: float) -> Deferred[None]:
        """Fires after this time, or earlier when the connection closes."""
        if self.closed.called:
            return succeed(None)
        sleeping: Deferred[None] = deferLater(self._clock, seconds)
        self._sleeping.add(sleeping)
        return sleeping.addBoth(lambda _: self._sleeping.discard(sleeping))

    def abort(self, reason: str, code: int = 0) -> None:
        """End it at once. Unsent bytes are lost."""
        self._set_close_reason(ConnectionLost(reason, code))
        self.transport.abortConnection()

    def flush(self) -> None:
        """Send now what is written. Else the transport sends it in the reactor's next turn, after what the rest of this
        one does. A transport that encrypts does so in any case."""
        if isinstance(self.transport, FileDescriptor) and self.is_open:
            # an error comes again in the next turn, to the reactor, which closes the connection
            self.transport.doWrite()

    def close(self) -> None:
        """Close it in order, or abort it after CLOSE_SECONDS. ``closed`` fires at the end."""
        if not self.is_open or self.blocked:
            # RabbitMQ does not read a blocked connection, so it would not reply
            self.abort("closed")
        else:
            self._set_close_reason(ConnectionLost("closed"))
            self._abort_later()
            try:
                self._impl.close()
            except AMQPError as e:
                self.abort(str(e))

    # -- IProtocol

    def makeConnection(self, transport: Any) -> None:
        """The TCP connection is open: pika starts the handshake."""
        transport.setTcpNoDelay(True)
        super().makeConnection(transport)
        transport.registerProducer(self, True)
        self._pika.makeConnection(_PikaTransport(transport, self._close_for_pika))

    def dataReceived(self, data: bytes) -> None:
        """Read bytes from RabbitMQ, or from another program that listens on this port."""
        if not self._impl.bytes_received and data.startswith(_TLS_ALERT):
            self.abort("it uses TLS on this port; set RABBITMQ_TLS=1, or RABBITMQ_PORT to the port without TLS")
            return
        # pika's heartbeat check must count the deliveries that bypass pika
        self._impl.bytes_received += 1
        try:
            self._reader.feed(data)
        except Exception as e:
            # our own callbacks do not raise, so the peer does not speak the AMQP that pika knows
            self.abort(f"it does not speak AMQP 0-9-1: {as_connection_lost(e)}")

    def certificate_refused(self, problem: Problem) -> None:
        """The TLS below refuses RabbitMQ's certificate: the reason for the end that follows."""
        # nothing more here: OpenSSL is calling, and the transport must not be touched
        self._refused = ConnectionLost(str(problem), hint="RABBITMQ_CAFILE and RABBITMQ_HOST")

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """The TCP connection has ended."""
        self._set_close_reason(self._refused or as_connection_lost(reason.value))
        assert self.close_reason is not None
        try:
            self._pika.connectionLost(reason)
        except Exception as e:
            self.log.warn("pika failed to close: {reason}", reason=str(as_connection_lost(e)))
        if self._abort_timer is not None and self._abort_timer.active():
            self._abort_timer.cancel()
        if not self.opened.called:
            self.opened.errback(self.close_reason)
        for sleeping in tuple(self._sleeping):
            sleeping.cancel()
        self.closed.callback(self.close_reason)

    # -- IPushProducer

    def pauseProducing(self) -> None:
        """The transport has more to send than it likes."""
        self._full_since = self._clock.seconds()

    def resumeProducing(self) -> None:
        """The transport has sent all."""
        was_behind = self._is_behind()
        self._full_since = None
        if was_behind:
            self._tell_blocked()

    def stopProducing(self) -> None:
        """The transport is closed."""

    def _on_ready(self, _: object) -> None:
        self._logged_in = True
        self.opened.callback(None)

    def _on_blocked(self, _: Any, frame: Any) -> None:
        # the frame that ends it has no reason
        self.blocked = _one_line(getattr(frame.method, "reason", "")) or None
        self._tell_blocked()

    def _tell_blocked(self) -> None:
        for callback in tuple(self.on_blocked):
            callback(self.blocked)

    def _set_close_reason(self, reason: ConnectionLost) -> None:
        if self.close_reason is None:
            # a paused producer would keep the transport from closing
            self.transport.unregisterProducer()
            hint = (_HINTS if self._logged_in else _LOGIN_HINTS).get(reason.code, "")
            self.close_reason = reason if reason.hint else ConnectionLost(str(reason), reason.code, hint)

    def _close_for_pika(self) -> None:
        # pika keeps the reason in _error only, and forgets it when the transport has closed
        self._set_close_reason(as_connection_lost(self._impl._error))
        self._abort_later()
        self.transport.loseConnection()

    def _abort_later(self) -> None:
        if self._abort_timer is None:
            self._abort_timer = self._clock.callLater(CLOSE_SECONDS, self.transport.abortConnection)
