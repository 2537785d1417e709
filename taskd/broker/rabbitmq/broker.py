"""The broker of the distributed server: RabbitMQ.

It uses two connections, because an alarm of RabbitMQ blocks connections that publish: one publishes work and events,
the other consumes them. The second one is opened for the first consumer. Import this module after the reactor is
installed, because pika takes the reactor that it finds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from pika import spec
from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger
from zope.interface import implementer

from taskd.broker.rabbitmq.connection import Connection, ConnectionLost, no_answer
from taskd.broker.rabbitmq.consumer import RabbitConsumer
from taskd.broker.rabbitmq.events import EventPublisher, EventSubscription
from taskd.broker.rabbitmq.publisher import PublisherSupervisor
from taskd.broker.rabbitmq.reconnecting import ChannelSupervisor, OutageReporter, ReconnectingConnection
from taskd.broker.rabbitmq.topology import Topology
from taskd.config import RabbitMQ
from taskd.model.errors import BrokerUnavailable
from taskd.ports.broker import CHANGES, Delivery, IBroker
from taskd.ports.scheduling import Dispatch

DECLARE_SECONDS = 5.0
"""How long RabbitMQ may take to declare a queue, which also gives its depth."""


@implementer(IBroker)
class RabbitBroker:
    """IBroker on RabbitMQ. It declares ``queues`` whenever it connects, and other queues on first use."""

    log = Logger()

    def __init__(self, settings: RabbitMQ, reactor: Any, queues: Sequence[str]) -> None:
        # pika writes many lines about a lost connection, which taskd reports itself in one
        logging.getLogger("pika").setLevel(logging.CRITICAL)
        self._reactor = reactor
        self._queues = tuple(queues)
        self._name = f"RabbitMQ at {settings.host}:{settings.port}"
        self._outage = OutageReporter(self._name)
        self._topology = Topology(self._name)
        self._declared: set[str] = set()
        self._work = PublisherSupervisor(reactor, self._declared.discard)
        self._events = EventPublisher(reactor)
        self._subscriptions: dict[str, EventSubscription] = {}
        self._consumers: list[ChannelSupervisor] = []
        self._publishing = ReconnectingConnection(
            reactor, settings, "taskd publishing", self._set_up_publishing, self._outage
        )
        self._consuming = ReconnectingConnection(
            reactor, settings, "taskd consuming", self._set_up_consuming, self._outage
        )
        self._running = False

    @property
    def ready(self) -> bool:
        """True while messages can be published."""
        publisher = self._work.publisher
        return publisher is not None and not publisher.obstacle

    @property
    def consuming(self) -> bool:
        """True while every consumer and subscription has its channel."""
        wanted = [consumer for consumer in self._consumers if not consumer.stopped]
        return bool(wanted) and all(consumer.ready for consumer in wanted)

    @property
    def blocked(self) -> str | None:
        """Why RabbitMQ is up but takes no messages, such as ``low on memory``; None if it takes them."""
        connection = self._publishing.connection
        return connection.blocked if connection is not None else None

    @property
    def outage(self) -> str | None:
        """Why a connection is down; None while all are up."""
        return self._outage.reason

    async def start(self) -> None:
        """Start connecting."""
        self._running = True
        self._publishing.start()
        if self._consumers:
            self._consuming.start()

    async def stop(self) -> None:
        """Close both connections in order, or abort them after two seconds."""
        self._running = False
        connections = (self._consuming, self._publishing)
        await gatherResults([Deferred.fromCoroutine(connection.stop()) for connection in connections])

    async def publish(self, queue: str, messages: Sequence[Dispatch]) -> None:
        """Publish messages and wait for the confirms. Raises BrokerUnavailable."""
        if queue not in self._declared:
            await self._declare(queue)
        publisher = self._work.publisher
        if publisher is None:
            raise BrokerUnavailable(f"{self._name} cannot be reached")
        await publisher.publish(queue, messages)

    def consume(
        self,
        queue: str,
        prefetch: int,
        on_deliveries: Callable[[Sequence[Delivery]], None],
        on_lost: Callable[[], None],
    ) -> RabbitConsumer:
        """Consume a work queue."""
        consumer = RabbitConsumer(self._reactor, self._topology, queue, prefetch, on_deliveries, on_lost)
        self._add(consumer)
        return consumer

    async def depth(self, queue: str) -> int:
        """The number of ready messages; a queue that was deleted is declared again. Raises BrokerUnavailable."""
        return int((await self._declare(queue)).message_count)

    def announce(self, batch: bytes, topic: str = CHANGES) -> None:
        """Send an event batch to every subscriber of a topic."""
        self._events.publish(batch, topic)

    def subscribe(self, on_batch: Callable[[bytes], None], on_gap: Callable[[], None], topic: str = CHANGES) -> None:
        """Call ``on_batch`` for all events of a topic, and ``on_gap`` each time that the subscription starts again."""
        subscription = self._subscriptions.get(topic)
        if subscription is None:
            subscription = self._subscriptions[topic] = EventSubscription(self._reactor, topic)
            self._add(subscription)
        subscription.listeners.append((on_batch, on_gap))

    def _add(self, consumer: ChannelSupervisor) -> None:
        self._consumers = [c for c in self._consumers if not c.stopped]
        self._consumers.append(consumer)
        if self._consuming.connection is not None:
            consumer.attach(self._consuming.connection)
        elif self._running:
            self._consuming.start()

    async def _declare(self, queue: str) -> spec.Queue.DeclareOk:
        connection = self._publishing.connection
        if connection is None:
            raise BrokerUnavailable(f"{self._name} cannot be reached")
        if connection.blocked:
            raise BrokerUnavailable(f"{self._name} takes no messages: {connection.blocked}")
        try:
            declaring = Deferred.fromCoroutine(self._topology.declare_queue(connection, queue))
            declared = await declaring.addTimeout(DECLARE_SECONDS, self._reactor, no_answer)
        except ConnectionLost as e:
            raise BrokerUnavailable(f"{self._name}: {e}") from None
        self._declared.add(queue)
        return declared

    async def _set_up_publishing(self, connection: Connection) -> None:
        connection.on_blocked.append(self._log_blocked)
        for queue in self._queues:
            await self._topology.declare_queue(connection, queue)
        self._declared.clear()
        self._declared.update(self._queues)
        await self._events.attach(connection)
        # last, because during an alarm RabbitMQ reads nothing after the first message
        await self._work.attach(connection)

    async def _set_up_consuming(self, connection: Connection) -> None:
        attached: set[ChannelSupervisor] = set()
        # others may be added during the set-up of one
        while waiting := [c for c in self._consumers if c not in attached]:
            attached.add(waiting[0])
            await waiting[0].attach(connection)

    def _log_blocked(self, reason: str | None) -> None:
        if reason:
            self.log.warn("{name} takes no messages: {reason}", name=self._name, reason=reason)
        else:
            self.log.info("{name} takes messages again", name=self._name)
