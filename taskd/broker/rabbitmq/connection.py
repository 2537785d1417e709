"""One connection to RabbitMQ and its channels, each an object for one lifetime, on pika's Twisted adapter.

pika's protocol stands behind ours, which adds what it leaves out: closing takes bounded time, whoever asks for it; the
cause of death is known; deliveries are read without pika (see rabbitmq_frames); and a Deferred of ours can always be
given up, because pika never fires one of its own into our hands.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from pika import ConnectionParameters, PlainCredentials
from pika.exceptions import AMQPError, ChannelClosed, ConnectionClosed
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import Protocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from taskd.broker.rabbitmq.frames import MAX_FRAME, FrameReader, Handler
from taskd.config import RabbitMQ

with warnings.catch_warnings():
    # its leaving pika 2.0 concerns us, not whoever runs taskd
    warnings.simplefilter("ignore", DeprecationWarning)
    from pika.adapters.twisted_connection import TwistedProtocolConnection

T = TypeVar("T")

HEARTBEAT = 10
"""Seconds. A silent peer is noticed within two and a half of these."""

CLOSE_SECONDS = 2.0
"""How long an orderly end may take before the transport is aborted."""


class ConnectionLost(Exception):
    """The channel or its connection is gone, or what was asked of it was refused.

    ``code`` is RabbitMQ's reply code, 0 where the cause is none of RabbitMQ's words.
    """

    def __init__(self, reason: str, code: int = 0) -> None:
        super().__init__(reason)
        self.code = code


def as_connection_lost(e: object) -> ConnectionLost:
    """What an exception of pika or Twisted says, in one line."""
    if isinstance(e, ConnectionLost):
        return e
    if isinstance(e, ConnectionClosed | ChannelClosed):
        return ConnectionLost(_line(e.reply_text), e.reply_code)
    if isinstance(e, AMQPError) and e.args:
        return ConnectionLost(_line(e.args[0]))
    return ConnectionLost(_line(e) or type(e).__name__)


def _line(text: object) -> str:
    return " ".join(str(text).split())


def within(clock: IReactorTime, seconds: float, waited: Deferred[T]) -> Deferred[T]:
    """What ``waited`` comes to; fails with Lost when that takes too long."""
    done: Deferred[T] = Deferred()
    timer = clock.callLater(seconds, lambda: done.errback(ConnectionLost(f"no answer within {seconds:.0f} s")))

    def ended(result: T | Failure) -> None:
        if timer.active():
            timer.cancel()
            done.callback(result)

    waited.addBoth(ended)
    return done


class Channel:
    """An AMQP channel until it closes. ``closed`` fires then, with the reason, and every call under way fails."""

    def __init__(self, raw: Any, connection: Connection, handlers: dict[int, Handler]) -> None:
        self.raw = raw
        self.number: int = raw.channel_number
        self.lost: ConnectionLost | None = None
        self.closed: Deferred[ConnectionLost] = Deferred()
        self._handlers = handlers
        self._calls: set[Deferred[Any]] = set()
        raw.add_on_close_callback(lambda _, e: self._ended(connection.cause or as_connection_lost(e)))
        raw.add_on_cancel_callback(
            lambda _: self.close(ConnectionLost("the consumer was cancelled, as if its queue was deleted"))
        )

    def call(self, method: Callable[..., Any], **arguments: Any) -> Deferred[Any]:
        """Call a method of the raw channel and wait for the reply. Fails with Lost."""
        done: Deferred[Any] = Deferred()
        if self.lost is None:
            try:
                method(callback=partial(self._answered, done), **arguments)
            except AMQPError as e:
                done.errback(as_connection_lost(e))
            else:
                self._calls.add(done)
        else:
            done.errback(self.lost)
        return done

    def consume(self, queue: str, handler: Handler, auto_ack: bool) -> Deferred[Any]:
        """Have messages delivered to ``handler``, of this one queue only, until ``cancel``."""

        def deliver(_: Any, method: Any, properties: Any, body: bytes) -> None:
            handler(method.delivery_tag, method.redelivered, body)

        self._handlers[self.number] = handler
        return self.call(self.raw.basic_consume, queue=queue, on_message_callback=deliver, auto_ack=auto_ack)

    def cancel(self) -> Deferred[Any]:
        """Have no more messages delivered; what is still on its way is given back."""
        # without the handler they go to pika, which rejects those of a cancelled consumer
        self._handlers.pop(self.number, None)
        tags = self.raw.consumer_tags
        return self.call(self.raw.basic_cancel, consumer_tag=tags[0]) if tags else succeed(None)

    def close(self, reason: ConnectionLost) -> None:
        """Close it; nobody waits for the answer. Its unacked deliveries go back to the queue."""
        if self.lost is None:
            with suppress(AMQPError):
                self.raw.close()
            self._ended(reason)

    def _answered(self, done: Deferred[Any], *reply: Any) -> None:
        if done in self._calls:
            self._calls.remove(done)
            done.callback(reply[0] if reply else None)

    def _ended(self, reason: ConnectionLost) -> None:
        if self.lost is None:
            self.lost = reason
            self._handlers.pop(self.number, None)
            calls, self._calls = self._calls, set()
            for done in calls:
                done.errback(reason)
            self.closed.callback(reason)


class _Wire:
    """The transport in pika's hands."""

    def __init__(self, transport: Any, lose: Callable[[], None]) -> None:
        self.write = transport.write
        self.abortConnection = transport.abortConnection
        self.loseConnection = lose


class Connection(Protocol):
    """A connection from the first byte to the last.

    ``opened`` fires when AMQP is ready and fails with Lost; ``lost`` fires with the reason when all is over. While
    ``blocked`` says why, RabbitMQ reads nothing that this connection publishes; ``on_blocked`` are called when that
    changes. ``cause`` is why it ends, known a little earlier than ``lost``.
    """

    log = Logger()

    def __init__(self, clock: IReactorTime, settings: RabbitMQ, name: str) -> None:
        self.opened: Deferred[None] = Deferred()
        self.lost: Deferred[ConnectionLost] = Deferred()
        self.blocked: str | None = None
        self.on_blocked: list[Callable[[], None]] = []
        self.cause: ConnectionLost | None = None
        self._clock = clock
        self._wire: _Wire | None = None
        self._abort: IDelayedCall | None = None
        self._sleepers: dict[Deferred[None], IDelayedCall] = {}
        parameters = ConnectionParameters(
            credentials=PlainCredentials(settings.user, settings.password),
            heartbeat=HEARTBEAT,
            frame_max=MAX_FRAME,
            client_properties={"product": "taskd", "connection_name": name},
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            self._pika = TwistedProtocolConnection(parameters, custom_reactor=clock)
        # pika's wrappers give a Deferred to each message and lose the cause of a failure; its plain connection and
        # channels, which take callbacks, do not
        self._impl = self._pika._impl
        self._impl.add_on_connection_blocked_callback(lambda _, frame: self._set_blocked(_line(frame.method.reason)))
        self._impl.add_on_connection_unblocked_callback(lambda _, frame: self._set_blocked(None))
        self._pika.ready.addCallbacks(self._ready, lambda _: None)
        self._reader = FrameReader(self._pika.dataReceived)

    @property
    def is_open(self) -> bool:
        """Whether channels can be opened and used."""
        return self.cause is None and bool(self._impl.is_open)

    @property
    def version(self) -> tuple[int, ...]:
        """RabbitMQ's version, such as (3, 10, 8); empty where the server does not tell."""
        text = (self._impl.server_properties or {}).get("version", "")
        numbers = (text.decode() if isinstance(text, bytes) else str(text)).split("-")[0].split("+")[0]
        return tuple(int(n) for n in numbers.split(".") if n.isdigit())

    def write(self, frames: bytes) -> None:
        """Send whole frames."""
        if self._wire is not None:
            self._wire.write(frames)

    def open_channel(self) -> Deferred[Channel]:
        """A new channel. Fails with Lost."""
        opened: Deferred[Channel] = Deferred()
        if not self.is_open:
            return fail(self.cause or ConnectionLost("the connection is closed"))
        try:
            raw = self._impl.channel(on_open_callback=opened.callback)
        except AMQPError as e:
            return fail(as_connection_lost(e))
        channel = Channel(raw, self, self._reader.handlers)
        # it may be refused, or the connection lost before the answer
        channel.closed.addCallback(lambda lost: lost if opened.called else opened.errback(lost))
        return opened.addCallback(lambda _: channel)

    def sleep(self, seconds: float) -> Deferred[None]:
        """Fires after this time, or when the connection is lost."""
        done: Deferred[None] = Deferred()
        if self._wire is None:
            return succeed(None)
        self._sleepers[done] = self._clock.callLater(seconds, self._wake, done)
        return done

    def drop(self, reason: str) -> None:
        """End it at once. What was not sent yet is lost, and RabbitMQ takes unacked deliveries back."""
        self._because(ConnectionLost(reason))
        if self._wire is not None:
            self._wire.abortConnection()

    def close(self) -> None:
        """End it in order, or by force after CLOSE_SECONDS. ``lost`` fires when it is over."""
        if not self.is_open or self.blocked:
            # a blocked connection is not read, so nobody would answer
            self.drop("closed")
        else:
            self._because(ConnectionLost("closed"))
            self._abort_later()
            try:
                self._impl.close()
            except AMQPError as e:
                self.drop(str(e))

    # -- IProtocol

    def makeConnection(self, transport: Any) -> None:
        """The transport is there: pika begins to speak."""
        transport.setTcpNoDelay(True)
        self._wire = _Wire(transport, self._lose)
        super().makeConnection(transport)
        self._pika.makeConnection(self._wire)

    def dataReceived(self, data: bytes) -> None:
        """What came from RabbitMQ, or from whatever answers at that port."""
        # deliveries that pika does not see are signs of life as well
        self._impl.bytes_received += 1
        try:
            self._reader.feed(data)
        except Exception as e:
            # callbacks of ours do not raise, so this is not AMQP as pika knows it
            self.drop(f"it does not speak AMQP 0-9-1: {as_connection_lost(e)}")

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """All is over."""
        self._because(as_connection_lost(reason.value))
        assert self.cause is not None
        self._wire = None
        if self._abort is not None and self._abort.active():
            self._abort.cancel()
        try:
            self._pika.connectionLost(reason)
        except Exception as e:
            self.log.warn("pika failed to close: {reason}", reason=str(as_connection_lost(e)))
        if not self.opened.called:
            self.opened.errback(self.cause)
        for sleeper in tuple(self._sleepers):
            self._wake(sleeper)
        self.lost.callback(self.cause)

    def _ready(self, _: object) -> None:
        if not self.opened.called:
            self.opened.callback(None)

    def _set_blocked(self, reason: str | None) -> None:
        self.blocked = reason
        for callback in tuple(self.on_blocked):
            callback()

    def _because(self, cause: ConnectionLost) -> None:
        if self.cause is None:
            self.cause = cause

    def _lose(self) -> None:
        # pika wants to close: it says why in _error only, and forgets it when the transport has closed
        self._because(as_connection_lost(self._impl._error))
        self._abort_later()
        if self.transport is not None:
            self.transport.loseConnection()

    def _abort_later(self) -> None:
        if self._abort is None and self._wire is not None:
            self._abort = self._clock.callLater(CLOSE_SECONDS, self._wire.abortConnection)

    def _wake(self, sleeper: Deferred[None]) -> None:
        timer = self._sleepers.pop(sleeper)
        if timer.active():
            timer.cancel()
        sleeper.callback(None)


class _Bridge(logging.Handler):
    """Hands what pika logs to twisted.logger, a line each and without tracebacks."""

    log = Logger(namespace="pika")

    def emit(self, record: logging.LogRecord) -> None:
        """Pass one record on."""
        self.log.warn("{line}", line=_line(record.getMessage()))


def quiet_pika() -> None:
    """Let pika speak through twisted.logger, and only of what should never happen: the incidents that it comments on
    in many lines are reported by ourselves in one. A level that was set on the logger ``pika`` stands."""
    logger = logging.getLogger("pika")
    if not any(isinstance(handler, _Bridge) for handler in logger.handlers):
        logger.addHandler(_Bridge())
        logger.propagate = False
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.CRITICAL)
