"""The broker of the distributed server: RabbitMQ.

It uses two connections, because an alarm of RabbitMQ blocks connections that publish: one sends hints and events, the
other receives them. The second one is opened for the first receiver. Import this module after the reactor is installed,
because pika takes the reactor that it finds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger
from zope.interface import implementer

from taskd.broker.rabbitmq.connection import Connection
from taskd.broker.rabbitmq.incoming import EventSubscription, HintReceiver, Receiver
from taskd.broker.rabbitmq.names import Names
from taskd.broker.rabbitmq.outgoing import Outgoing
from taskd.broker.rabbitmq.reconnecting import OutageReporter, ReconnectingConnection
from taskd.config import RabbitMQ
from taskd.ports.broker import IBroker


@implementer(IBroker)
class RabbitBroker:
    """IBroker on RabbitMQ. ``installation`` tells the id that all names begin with; it is known before start()."""

    log = Logger()

    def __init__(self, settings: RabbitMQ, reactor: Any, installation: Callable[[], str]) -> None:
        # pika writes many lines about a lost connection, which taskd reports itself in one
        logging.getLogger("pika").setLevel(logging.CRITICAL)
        self._reactor = reactor
        self._names = Names(installation)
        self._name = f"RabbitMQ at {settings.host}:{settings.port}"
        self._outage = OutageReporter(self._name)
        self._outgoing = Outgoing(reactor, self._names)
        self._subscription: EventSubscription | None = None
        self._receivers: list[Receiver] = []
        self._sending = ReconnectingConnection(reactor, settings, "taskd sending", self._set_up_sending, self._outage)
        self._receiving = ReconnectingConnection(
            reactor, settings, "taskd receiving", self._set_up_receiving, self._outage
        )
        self._running = False

    @property
    def ready(self) -> bool:
        """True while messages can be sent."""
        return self._outgoing.can_send

    @property
    def consuming(self) -> bool:
        """True while every receiver has its channel."""
        wanted = [receiver for receiver in self._receivers if not receiver.stopped]
        return bool(wanted) and all(receiver.ready for receiver in wanted)

    @property
    def blocked(self) -> str | None:
        """Why RabbitMQ is up but takes no messages, such as ``low on memory``; None if it takes them."""
        connection = self._sending.connection
        return connection.blocked if connection is not None else None

    @property
    def outage(self) -> str | None:
        """Why a connection is down; None while all are up."""
        return self._outage.reason

    async def start(self) -> None:
        """Start connecting."""
        self._running = True
        self._sending.start()
        if self._receivers:
            self._receiving.start()

    async def stop(self) -> None:
        """Close both connections in order, or abort them after two seconds."""
        self._running = False
        connections = (self._receiving, self._sending)
        await gatherResults([Deferred.fromCoroutine(connection.stop()) for connection in connections])

    def hint(self, workers: Iterable[str], orders: bool = False) -> None:
        """Tell these workers to look."""
        self._outgoing.hint(workers, orders)

    def receive_hints(self, worker: str, on_hint: Callable[[bool], None], on_lost: Callable[[], None]) -> HintReceiver:
        """Receive the hints for a worker."""
        receiver = HintReceiver(self._reactor, self._names, worker, on_hint, on_lost, self._outgoing.exchange_missing)
        self._add(receiver)
        return receiver

    def announce(self, batch: bytes) -> None:
        """Send an event batch to every subscriber."""
        self._outgoing.announce(batch)

    def flush(self) -> None:
        """Send at once what was announced."""
        self._outgoing.flush()

    def subscribe(self, on_batch: Callable[[bytes], None], on_gap: Callable[[], None]) -> None:
        """Call ``on_batch`` for all events, and ``on_gap`` each time that the subscription starts again."""
        if self._subscription is None:
            self._subscription = EventSubscription(self._reactor, self._names, self._outgoing.exchange_missing)
            self._add(self._subscription)
        self._subscription.listeners.append((on_batch, on_gap))

    def _add(self, receiver: Receiver) -> None:
        self._receivers = [each for each in self._receivers if not each.stopped]
        self._receivers.append(receiver)
        if self._receiving.connection is not None:
            receiver.attach(self._receiving.connection)
        elif self._running:
            self._receiving.start()

    async def _set_up_sending(self, connection: Connection) -> None:
        connection.on_blocked.append(self._log_blocked)
        await self._outgoing.attach(connection)

    async def _set_up_receiving(self, connection: Connection) -> None:
        attached: set[Receiver] = set()
        # others may be added during the set-up of one
        while waiting := [each for each in self._receivers if each not in attached]:
            attached.add(waiting[0])
            await waiting[0].attach(connection)

    def _log_blocked(self, reason: str | None) -> None:
        if reason:
            self.log.warn("{name} takes no messages: {reason}", name=self._name, reason=reason)
        else:
            self.log.info("{name} takes messages again", name=self._name)
