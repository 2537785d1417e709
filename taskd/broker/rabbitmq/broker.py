"""The broker of the distributed server: RabbitMQ.

Two connections, because RabbitMQ's alarms block those that publish: one publishes work and news, the other consumes
them, opened when something is first to be consumed. This module and those named after it are the only ones that know
pika. Import it when the reactor is installed: pika takes the one it finds.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger
from zope.interface import implementer

from taskd.broker.rabbitmq.connection import Connection, ConnectionLost, quiet_pika, within
from taskd.broker.rabbitmq.consumer import RabbitConsumer, Subscription
from taskd.broker.rabbitmq.publisher import EventSupervisor, PublisherSupervisor
from taskd.broker.rabbitmq.reconnecting import ChannelSupervisor, Incident, ReconnectingConnection
from taskd.broker.rabbitmq.topology import Declared, Topology
from taskd.config import RabbitMQ
from taskd.model.errors import BrokerUnavailable
from taskd.ports.broker import CHANGES, Delivery, IBroker
from taskd.ports.scheduling import Dispatch

DECLARE_SECONDS = 5.0
"""How long RabbitMQ may take to declare a queue, or to tell its depth."""


@implementer(IBroker)
class RabbitBroker:
    """IBroker on RabbitMQ. ``queues`` are declared on every connection; others when they are first used."""

    log = Logger()

    def __init__(
        self,
        settings: RabbitMQ,
        reactor: Any,
        queues: Sequence[str],
        jitter: Callable[[], float] = random.random,
    ) -> None:
        quiet_pika()
        self._reactor = reactor
        self._queues = tuple(queues)
        self._jitter = jitter
        self._name = f"RabbitMQ at {settings.host}:{settings.port}"
        self._incident = Incident(self._name)
        self._topology = Topology(self._name)
        self._declared: set[str] = set()
        self._publishing = PublisherSupervisor(reactor, self._declared.discard, jitter)
        self._news = EventSupervisor(reactor, jitter)
        self._subscriptions: dict[str, Subscription] = {}
        self._consumers: list[ChannelSupervisor] = []
        self._outgoing = ReconnectingConnection(
            reactor, settings, "taskd publishing", self._open_outgoing, self._incident, jitter
        )
        self._incoming = ReconnectingConnection(
            reactor, settings, "taskd consuming", self._open_incoming, self._incident, jitter
        )
        self._running = False

    @property
    def ready(self) -> bool:
        """True while messages can be published."""
        publisher = self._publishing.publisher
        return publisher is not None and publisher.ready

    @property
    def consuming(self) -> bool:
        """True while everything that is to be consumed can arrive."""
        wanted = [consumer for consumer in self._consumers if not consumer.stopped]
        return bool(wanted) and all(consumer.ready for consumer in wanted)

    @property
    def blocked(self) -> str | None:
        """Why RabbitMQ takes no messages though it is there, such as ``low on memory``."""
        connection = self._outgoing.connection
        return connection.blocked if connection is not None else None

    @property
    def trouble(self) -> str | None:
        """Why there is no connection, None while there is."""
        return self._incident.trouble

    async def start(self) -> None:
        """Begin to connect."""
        self._running = True
        self._outgoing.start()
        if self._consumers:
            self._incoming.start()

    async def stop(self) -> None:
        """Close both connections in order or, after two seconds, by force."""
        self._running = False
        links = (self._incoming, self._outgoing)
        await gatherResults([Deferred.fromCoroutine(link.stop()) for link in links])
        self._consumers.clear()

    async def publish(self, queue: str, messages: Sequence[Dispatch]) -> None:
        """Hand messages over. Raises BrokerUnavailable."""
        if queue not in self._declared:
            await self._declare(queue)
        publisher = self._publishing.publisher
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
        """Consume a work queue from now on."""
        consumer = RabbitConsumer(self._reactor, self._topology, queue, prefetch, on_deliveries, on_lost, self._jitter)
        self._add(consumer)
        return consumer

    async def depth(self, queue: str) -> int:
        """Messages ready in the queue; one that was deleted is declared again, and empty. Raises BrokerUnavailable."""
        return (await self._declare(queue)).messages

    def announce(self, news: bytes, topic: str = CHANGES) -> None:
        """Send news to every subscriber of a topic."""
        self._news.announce(news, topic)

    def subscribe(self, on_news: Callable[[bytes], None], on_gap: Callable[[], None], topic: str = CHANGES) -> None:
        """Hear all news of a topic from now on. ``on_gap`` is called each time that hearing begins."""
        subscription = self._subscriptions.get(topic)
        if subscription is None:
            subscription = self._subscriptions[topic] = Subscription(self._reactor, topic, self._jitter)
        subscription.add(on_news, on_gap)
        if subscription not in self._consumers:
            self._add(subscription)

    def _add(self, consumer: ChannelSupervisor) -> None:
        self._consumers = [c for c in self._consumers if not c.stopped]
        self._consumers.append(consumer)
        if self._incoming.connection is not None:
            consumer.attach(self._incoming.connection)
        elif self._running:
            self._incoming.start()

    async def _declare(self, queue: str) -> Declared:
        connection = self._outgoing.connection
        if connection is None:
            raise BrokerUnavailable(f"{self._name} cannot be reached")
        if connection.blocked:
            raise BrokerUnavailable(f"{self._name} takes no messages: {connection.blocked}")
        try:
            declared = Deferred.fromCoroutine(self._topology.declare_queue(connection, queue))
            found = await within(self._reactor, DECLARE_SECONDS, declared)
        except ConnectionLost as e:
            raise BrokerUnavailable(f"{self._name}: {e}") from None
        self._declared.add(queue)
        return found

    async def _open_outgoing(self, connection: Connection) -> None:
        connection.on_blocked.append(lambda: self._tell_blocked(connection))
        await self._topology.declare(connection, self._queues)
        self._declared.clear()
        self._declared.update(self._queues)
        await self._news.attach(connection)
        # the last, because in an alarm RabbitMQ reads nothing after the first message
        await self._publishing.attach(connection)

    async def _open_incoming(self, connection: Connection) -> None:
        await self._topology.declare(connection, self._queues)
        attached: set[ChannelSupervisor] = set()
        # more may be added while those before are set up
        while waiting := [c for c in self._consumers if c not in attached]:
            attached.add(waiting[0])
            await waiting[0].attach(connection)

    def _tell_blocked(self, connection: Connection) -> None:
        if connection.blocked:
            self.log.warn("{name} takes no messages: {reason}", name=self._name, reason=connection.blocked)
        else:
            self.log.info("{name} takes messages again", name=self._name)
