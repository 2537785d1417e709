"""What lasts: a link that makes one connection after the other, and keepers that do the same with channels."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from pika.exceptions import AMQPError
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.error import ConnectError, ConnectingCancelledError
from twisted.internet.interfaces import IAddress, IDelayedCall, IReactorTime
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.failure import Failure

from taskd.broker.rabbitmq.connection import Channel, Connection, ConnectionLost, as_connection_lost
from taskd.config import RabbitMQ

MIN_DELAY = 0.1
MAX_DELAY = 5.0
"""Seconds between attempts: doubled from first to last, less a random part of up to a half."""

OPEN_SECONDS = 10.0
"""How long it may take to connect, to log in and to set up all that a connection is for."""


class Backoff:
    """Delays between attempts, in seconds; what has lasted MAX_DELAY counts as a success and starts them over."""

    def __init__(self, jitter: Callable[[], float]) -> None:
        self._jitter = jitter
        self._failures = 0

    def next(self, lasted: float = 0.0) -> float:
        """The delay after something that lasted so many seconds."""
        if lasted >= MAX_DELAY:
            self._failures = 0
        delay = min(MAX_DELAY, MIN_DELAY * 2 ** min(self._failures, 10)) * (1 - self._jitter() / 2)
        self._failures += 1
        return delay


class Incident:
    """Says once that RabbitMQ is away, and once that it is back, for all links.

    It speaks up again within an incident when the trouble is of another kind: first nobody listens, then the password
    turns out to be wrong. ``trouble`` is the present reason, None while all is well.
    """

    log = Logger()

    def __init__(self, name: str) -> None:
        self.trouble: str | None = None
        self._name = name
        self._down: set[object] = set()
        self._told: set[bool] = set()

    def down(self, link: object, reason: ConnectionLost) -> None:
        """This link has no connection."""
        self._down.add(link)
        self.trouble = str(reason)
        by_rabbitmq = bool(reason.code)
        if by_rabbitmq not in self._told:
            self._told.add(by_rabbitmq)
            self.log.warn("{name}: {reason}: trying on", name=self._name, reason=self.trouble)

    def up(self, link: object) -> None:
        """This link has its connection."""
        self._down.discard(link)
        if self._told and not self._down:
            self._told.clear()
            self.trouble = None
            self.log.info("{name}: connected", name=self._name)


class ReconnectingConnection:
    """Keeps one connection. ``set_up`` gets each new one before it counts as up; if it raises, the connection goes.

    ``connection`` is None while there is none that is set up.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        settings: RabbitMQ,
        name: str,
        set_up: Callable[[Connection], Awaitable[None]],
        incident: Incident,
        jitter: Callable[[], float],
    ) -> None:
        self.connection: Connection | None = None
        self._reactor = reactor
        self._settings = settings
        self._name = name
        self._set_up = set_up
        self._incident = incident
        self._backoff = Backoff(jitter)
        self._dialling: Deferred[Any] | None = None
        self._present: Connection | None = None
        self._pause: tuple[Deferred[None], IDelayedCall] | None = None
        self._ended: Deferred[None] | None = None
        self._running = False

    def start(self) -> None:
        """Begin to connect."""
        if self._ended is None:
            self._running = True
            self._ended = Deferred.fromCoroutine(self._run())
            self._ended.addErrback(lambda f: self.log.failure("the link {name} broke", f, name=self._name))

    async def stop(self) -> None:
        """Close the connection in order or, after a moment, by force."""
        self._running = False
        if self._dialling is not None:
            self._dialling.cancel()
        if self._present is not None:
            self._present.close()
        if self._pause is not None:
            self._pause[1].cancel()
            self._go_on()
        if self._ended is not None:
            await self._ended

    async def _run(self) -> None:
        while self._running:
            opened = self._reactor.seconds()
            try:
                connection = await self._open()
            except (ConnectionLost, AMQPError, OSError, ConnectError, ConnectingCancelledError, ValueError) as e:
                reason = as_connection_lost(e)
            except Exception:
                self.log.failure("{name}: setting up the connection failed", name=self._name)
                reason = ConnectionLost("an error of ours, see above")
            else:
                opened = self._reactor.seconds()
                self.connection = connection
                self._incident.up(self)
                reason = await connection.lost
                self.connection = None
            self._present = None
            if self._running:
                self._incident.down(self, reason)
                await self._wait(self._backoff.next(self._reactor.seconds() - opened))

    async def _open(self) -> Connection:
        timer = self._reactor.callLater(OPEN_SECONDS, self._too_slow)
        try:
            # HostnameEndpoint looks names up in a thread and tries all addresses
            endpoint = HostnameEndpoint(self._reactor, self._settings.host, self._settings.port, OPEN_SECONDS)
            self._dialling = endpoint.connect(_Connections(self._reactor, self._settings, self._name))
            try:
                connection = await self._dialling
            finally:
                self._dialling = None
            assert isinstance(connection, Connection)
            self._present = connection
            await connection.opened
            await self._set_up(connection)
            if connection.cause is not None:
                raise connection.cause
            return connection
        except Exception as e:
            if self._present is not None:
                if self._running:
                    self._present.drop(str(e))
                await self._present.lost
            if not timer.active():
                raise ConnectionLost(f"no answer within {OPEN_SECONDS:.0f} s") from e
            if isinstance(e, ConnectionLost) and e.code == 403:
                raise ConnectionLost(f"{e} (see RABBITMQ_USER and RABBITMQ_PASSWORD)", e.code) from e
            raise
        finally:
            if timer.active():
                timer.cancel()

    def _too_slow(self) -> None:
        if self._dialling is not None:
            self._dialling.cancel()
        if self._present is not None:
            self._present.drop("no answer")

    def _wait(self, seconds: float) -> Deferred[None]:
        done: Deferred[None] = Deferred()
        self._pause = (done, self._reactor.callLater(seconds, self._go_on))
        return done

    def _go_on(self) -> None:
        assert self._pause is not None
        done, _ = self._pause
        self._pause = None
        done.callback(None)


class _Connections(Factory):
    """Makes the protocol for an endpoint."""

    noisy = False

    def __init__(self, reactor: Any, settings: RabbitMQ, name: str) -> None:
        self._make = lambda: Connection(reactor, settings, name)

    def buildProtocol(self, addr: IAddress | None) -> Connection:
        """One object for one lifetime."""
        return self._make()


class ChannelSupervisor:
    """Keeps one channel on each connection that it is given: opens it, has it set up, and opens the next at its end.

    A channel that cannot be set up takes the connection with it: what is left to try is a new one. ``what`` it is for
    stands in the log. ``ready`` is True while there is a channel that is set up; once ``stopped``, no more are opened.
    """

    log = Logger()

    def __init__(self, clock: IReactorTime, what: str, jitter: Callable[[], float]) -> None:
        self.stopped = False
        self.ready = False
        self._clock = clock
        self._what = what
        self._jitter = jitter

    async def set_up(self, connection: Connection, channel: Channel) -> None:
        """Make a new channel ready for its use. May raise Lost."""
        raise NotImplementedError

    def ended(self) -> None:
        """The channel that was set up has closed."""

    def attach(self, connection: Connection) -> Deferred[None]:
        """Begin on a new connection. Fires when the channel is set up or the connection is being dropped."""
        begun: Deferred[None] = Deferred()
        kept = Deferred.fromCoroutine(self._keep(connection, begun))
        kept.addErrback(self._broke, connection)
        kept.addCallback(lambda _: None if begun.called else begun.callback(None))
        return begun

    async def _keep(self, connection: Connection, begun: Deferred[None]) -> None:
        backoff = Backoff(self._jitter)
        while connection.is_open and not self.stopped:
            timer = self._clock.callLater(OPEN_SECONDS, connection.drop, f"{self._what}: no answer")
            try:
                channel = await connection.open_channel()
                await self.set_up(connection, channel)
            except (ConnectionLost, AMQPError) as e:
                # one that is closing already may do so in order
                if connection.is_open:
                    connection.drop(f"{self._what}: {as_connection_lost(e)}")
                break
            finally:
                if timer.active():
                    timer.cancel()
            began = self._clock.seconds()
            self.ready = not self.stopped
            if not begun.called:
                begun.callback(None)
            reason = await channel.closed
            self.ready = False
            self.ended()
            if connection.is_open and not self.stopped:
                self.log.warn("{what}: {reason}: trying on", what=self._what, reason=str(reason))
                await connection.sleep(backoff.next(self._clock.seconds() - began))

    def _broke(self, failure: Failure, connection: Connection) -> None:
        self.log.failure("{what}: an error of ours", failure, what=self._what)
        connection.drop(f"{self._what}: an error of ours")
