"""Events: published without confirms and consumed without acks, because a subscriber recovers from a gap."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from pika import BasicProperties
from pika.exceptions import AMQPError
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from taskd.broker.rabbitmq.connection import Channel, ConnectionLost
from taskd.broker.rabbitmq.reconnecting import ChannelSupervisor
from taskd.broker.rabbitmq.topology import EVENT_QUEUE, EXCHANGES, declare_exchanges

BIND_SECONDS = 30.0
"""How often a subscription binds its queue again, in case somebody deleted the exchange and it was declared again."""

GAP = b""
"""The body of a message that reports lost events. Event batches are never empty."""


class EventPublisher(ChannelSupervisor):
    """Publishes events. If some had to be dropped or may have been lost, a GAP message follows as soon as possible."""

    _PROPERTIES = BasicProperties(delivery_mode=1)

    def __init__(self, clock: IReactorTime) -> None:
        super().__init__(clock, "publishing events")
        self._channel: Channel | None = None
        self._gap = False

    async def set_up(self, channel: Channel) -> None:
        """Declare the exchanges, then publish on this channel."""
        await declare_exchanges(channel)
        self._channel = channel
        channel.connection.on_blocked.append(self._publish_gap)
        self._publish_gap()

    def channel_closed(self) -> None:
        """Drop events until there is a new channel. The last ones may not have been sent."""
        if self._channel is not None:
            self._channel.connection.on_blocked.remove(self._publish_gap)
            self._channel = None
        self._gap = True

    def publish(self, body: bytes, topic: str) -> None:
        """Send an event batch to the subscribers of a topic, or drop it while that is not possible."""
        if self._channel is None or self._channel.connection.blocked:
            self._gap = True
            return
        # pika raises if the channel has just closed; channel_closed then records the gap
        with suppress(AMQPError):
            self._channel.raw.basic_publish(EXCHANGES[topic], "", body, self._PROPERTIES)

    def _publish_gap(self, _: str | None = None) -> None:
        if self._gap:
            # publish sets it again if it cannot send now
            self._gap = False
            for topic in EXCHANGES:
                self.publish(GAP, topic)


class EventSubscription(ChannelSupervisor):
    """The events of one topic for this process: one queue for all listeners, which lives as long as its channel."""

    log = Logger()

    def __init__(self, clock: IReactorTime, topic: str) -> None:
        super().__init__(clock, f"events of {topic}")
        self._exchange = EXCHANGES[topic]
        self.listeners: list[tuple[Callable[[bytes], None], Callable[[], None]]] = []

    async def set_up(self, channel: Channel) -> None:
        """Consume from a new queue. Earlier events were missed."""
        await declare_exchanges(channel)
        declared = await channel.call(
            "queue_declare", queue="", exclusive=True, auto_delete=True, arguments=EVENT_QUEUE
        )
        queue = declared.method.queue
        await channel.call("queue_bind", queue=queue, exchange=self._exchange)
        await channel.consume(queue, self._on_message, auto_ack=True)
        binding = Deferred.fromCoroutine(self._keep_bound(channel, queue))
        binding.addErrback(lambda f: self.log.failure("binding the event queue again failed", f))
        self._report_gap()

    async def _keep_bound(self, channel: Channel, queue: str) -> None:
        # RabbitMQ does not notify a queue when its exchange, and so its binding, is deleted
        with suppress(ConnectionLost):
            while True:
                await channel.connection.sleep(BIND_SECONDS)
                await channel.call("queue_bind", queue=queue, exchange=self._exchange)

    def _on_message(self, tag: int, redelivered: bool, body: bytes) -> None:
        if body == GAP:
            self._report_gap()
        else:
            for on_events, _ in self.listeners:
                with self.log.failuresHandled("an event listener failed"):
                    on_events(body)

    def _report_gap(self) -> None:
        for _, on_gap in self.listeners:
            with self.log.failuresHandled("an event listener failed"):
                on_gap()
