"""Reconnecting: a connection that is opened again whenever it is lost, and supervisors that reopen channels."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

from pika.exceptions import AMQPError
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.error import ConnectError, ConnectingCancelledError
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from taskd.broker.rabbitmq.connection import REFUSED, Channel, Connection, ConnectionLost, as_connection_lost, no_answer
from taskd.config import RabbitMQ
from taskd.model.backoff import Backoff
from taskd.model.errors import SettingsError

RECONNECT = Backoff(first=0.1, factor=2.0, longest=5.0, jitter=0.5)
"""The delays between attempts to connect or to open a channel."""

OPEN_SECONDS = 10.0
"""The time limit for connecting, logging in and setting up everything that uses the connection."""


_EXPECTED = (ConnectionLost, AMQPError, OSError, ConnectError, ValueError, CancelledError, ConnectingCancelledError)
"""What an attempt to connect raises, also when it is stopped."""


class ReconnectDelays:
    """The delays of one row of attempts. An attempt that lasted ``RECONNECT.longest`` seconds starts them over."""

    def __init__(self) -> None:
        self._failures = 0

    def next(self, lasted: float) -> float:
        """Seconds to wait after an attempt whose result lasted so many seconds."""
        if lasted >= RECONNECT.longest:
            self._failures = 0
        self._failures += 1
        return RECONNECT.delay(self._failures, random.random())


class OutageReporter:
    """Logs once that RabbitMQ is down and once that it is up again, for all connections together.

    Within one outage it logs again when the kind of reason changes: at first nothing listens on the port, for example,
    then RabbitMQ refuses the password, then the virtual host. ``reason`` is the current reason, None when no outage was
    reported.
    """

    log = Logger()

    def __init__(self, name: str) -> None:
        self.reason: str | None = None
        self._name = name
        self._down: set[object] = set()
        self._reported: set[tuple[int, str]] = set()

    def down(self, connection: object, reason: ConnectionLost) -> None:
        """This connection is not open."""
        self._down.add(connection)
        self.reason = str(reason)
        # not the text: RabbitMQ's has names in it that are new each time
        kind = reason.code, reason.hint
        if kind not in self._reported:
            self._reported.add(kind)
            self.log.warn("{name}: {reason}; retrying", name=self._name, reason=self.reason)

    def up(self, connection: object) -> None:
        """This connection is open and set up."""
        self._down.discard(connection)
        if self._reported and not self._down:
            self._reported.clear()
            self.reason = None
            self.log.info("{name}: connected", name=self._name)


class ReconnectingConnection:
    """Keeps one connection open.

    ``set_up`` gets each new connection before it counts as up; the connection is aborted if that raises. ``connection``
    is the one that is up, or None.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        settings: RabbitMQ,
        name: str,
        set_up: Callable[[Connection], Awaitable[None]],
        outage: OutageReporter,
    ) -> None:
        self.connection: Connection | None = None
        self._reactor = reactor
        self._set_up = set_up
        self._outage = outage
        self._delays = ReconnectDelays()
        self._endpoint = _endpoint(reactor, settings)
        self._factory = Factory.forProtocol(partial(Connection, reactor, settings, name))
        self._factory.noisy = False
        self._ended: Deferred[None] | None = None
        self._stopping = False

    def start(self) -> None:
        """Start connecting."""
        if self._ended is None:
            self._ended = Deferred.fromCoroutine(self._run())

    async def stop(self) -> None:
        """Close the connection in order, or abort it after CLOSE_SECONDS."""
        self._stopping = True
        if self._ended is not None:
            if self.connection is not None:
                self.connection.close()
            else:
                # it is connecting, being set up, or waiting for the next attempt
                self._ended.cancel()
            await self._ended

    async def _run(self) -> None:
        while not self._stopping:
            began = self._reactor.seconds()
            try:
                opening = Deferred.fromCoroutine(self._open())
                connection = await opening.addTimeout(OPEN_SECONDS, self._reactor, no_answer)
            except _EXPECTED as e:
                reason = as_connection_lost(e)
            except Exception:
                self.log.failure("setting up a connection to RabbitMQ failed")
                reason = ConnectionLost("a defect of taskd, see the log above")
            else:
                began = self._reactor.seconds()
                self.connection = connection
                self._outage.up(self)
                reason = await connection.closed
                self.connection = None
            if not self._stopping:
                self._outage.down(self, reason)
                with suppress(CancelledError):
                    await deferLater(self._reactor, self._delays.next(self._reactor.seconds() - began))

    async def _open(self) -> Connection:
        connection = await self._endpoint.connect(self._factory)
        assert isinstance(connection, Connection)
        try:
            await connection.opened
            await self._set_up(connection)
            if connection.close_reason is not None:
                raise connection.close_reason
        except Exception as e:
            if self._stopping:
                connection.close()
            else:
                connection.abort(str(e), e.code if isinstance(e, ConnectionLost) else 0)
            reason = await connection.closed
            if isinstance(e, ConnectionLost):
                raise reason from e
            raise
        return connection


def _endpoint(reactor: Any, settings: RabbitMQ) -> IStreamClientEndpoint:
    """Where RabbitMQ listens. Raises SettingsError if it is to use TLS and cannot."""
    # HostnameEndpoint resolves the name in a thread and tries all addresses
    endpoint = HostnameEndpoint(reactor, settings.host, settings.port, OPEN_SECONDS)
    if not settings.tls:
        return endpoint
    from taskd.tls.client import ClientTls  # imports OpenSSL, which a plain connection does not need
    from taskd.tls.files import Authorities

    try:
        authorities = Authorities(settings.cafile) if settings.cafile is not None else None
    except (OSError, ValueError) as e:
        why = e.strerror if isinstance(e, OSError) else e
        raise SettingsError(f"RABBITMQ_CAFILE: {settings.cafile}: {why}") from None
    try:
        return wrapClientTLS(ClientTls(settings.host, authorities), endpoint)
    except ValueError:
        raise SettingsError(f"RABBITMQ_HOST: {settings.host!r} cannot be the host of a certificate") from None


class ChannelSupervisor:
    """Keeps one channel open on the connection that it is attached to: opens it, sets it up, and opens another one when
    it closes.

    If a channel cannot be set up, the supervisor aborts the connection: only a new connection can help. ``purpose``
    names the use of the channel in the log. ``ready`` is True while a channel is set up. No channel is opened any more
    once ``stopped`` is True.
    """

    log = Logger()

    def __init__(self, clock: IReactorTime, purpose: str) -> None:
        self.stopped = False
        self.ready = False
        self._clock = clock
        self._purpose = purpose

    async def set_up(self, channel: Channel) -> None:
        """Prepare a new channel for its use. May raise ConnectionLost."""
        raise NotImplementedError

    def channel_closed(self) -> None:
        """The channel that was set up has closed."""

    def attach(self, connection: Connection) -> Deferred[None]:
        """Start on a new connection. Fires when the channel is set up, or when it never will be."""
        attached: Deferred[None] = Deferred()
        ended = Deferred.fromCoroutine(self._supervise(connection, attached))
        ended.addErrback(self._on_defect, connection)
        ended.addCallback(lambda _: None if attached.called else attached.callback(None))
        return attached

    async def _supervise(self, connection: Connection, attached: Deferred[None]) -> None:
        delays = ReconnectDelays()
        told_of_refusal = False
        while connection.is_open and not self.stopped:
            timer = self._clock.callLater(OPEN_SECONDS, connection.abort, f"{self._purpose}: no answer")
            try:
                channel = await connection.open_channel()
                await self.set_up(channel)
            except (ConnectionLost, AMQPError) as e:
                # a connection that is closing already may do so in order
                if connection.is_open:
                    lost = as_connection_lost(e)
                    connection.abort(f"{self._purpose}: {lost}", lost.code)
                break
            finally:
                if timer.active():
                    timer.cancel()
            began = self._clock.seconds()
            self.ready = not self.stopped
            if not attached.called:
                attached.callback(None)
            reason = await channel.closed
            self.ready = False
            self.channel_closed()
            if connection.is_open and not self.stopped:
                # without the permission to publish, RabbitMQ closes the channel at each message
                if reason.code != REFUSED or not told_of_refusal:
                    self.log.warn("{purpose}: {reason}; retrying", purpose=self._purpose, reason=str(reason))
                told_of_refusal |= reason.code == REFUSED
                await connection.sleep(delays.next(self._clock.seconds() - began))

    def _on_defect(self, failure: Failure, connection: Connection) -> None:
        self.log.failure("{purpose}: a defect of taskd", failure, purpose=self._purpose)
        connection.abort(f"{self._purpose}: a defect of taskd")
