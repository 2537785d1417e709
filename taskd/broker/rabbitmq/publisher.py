"""Publishing work with confirms, and news without."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import takewhile
from typing import Any

from pika import BasicProperties, spec
from pika.exceptions import AMQPError
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from taskd.broker.rabbitmq.connection import Channel, Connection, ConnectionLost
from taskd.broker.rabbitmq.frames import PublishFrames
from taskd.broker.rabbitmq.reconnecting import ChannelSupervisor
from taskd.broker.rabbitmq.topology import EXCHANGES, declare_exchanges
from taskd.model.errors import BrokerUnavailable
from taskd.ports.scheduling import Dispatch

CONFIRM_SECONDS = 10.0
"""How long RabbitMQ may take to confirm a message before the connection is dropped."""


class _Batch:
    """The messages of one publish that are not confirmed yet: ``left`` counts them."""

    __slots__ = ("done", "left", "queue", "sent")

    def __init__(self, queue: str, left: int, sent: float) -> None:
        self.queue = queue
        self.left = left
        self.sent = sent
        self.done: Deferred[None] = Deferred()

    def fail(self, reason: str) -> None:
        """It failed for this reason, unless it has ended already."""
        if not self.done.called:
            self.done.errback(BrokerUnavailable(reason))


class Publisher:
    """Publishes on one channel in confirm mode, until it closes.

    RabbitMQ confirms what it cannot route, after it has returned it. Any return fails all open batches of that queue:
    it has been deleted, so whatever else of theirs was in it is gone too. This needs no ids in the messages, and no
    batch ends well that should not: a message's return comes before its confirm, while its batch is open.
    """

    def __init__(
        self, clock: IReactorTime, connection: Connection, channel: Channel, on_missing: Callable[[str], None]
    ) -> None:
        self._clock = clock
        self._connection = connection
        self._channel = channel
        self._on_missing = on_missing
        self._proven = False
        self._answer: Deferred[None] = Deferred()
        self._frames: dict[str, PublishFrames] = {}
        self._last_tag = 0
        self._unconfirmed: dict[int, _Batch] = {}
        self._open: dict[_Batch, None] = {}
        self._watch: IDelayedCall | None = None

    @property
    def ready(self) -> bool:
        """Whether messages can be published now."""
        return self._proven and self._channel.lost is None and not self._connection.blocked

    @property
    def unconfirmed(self) -> int:
        """How many messages await their confirm."""
        return len(self._unconfirmed)

    async def set_up(self) -> None:
        """Turn confirms on, and see that they come. Raises Lost."""
        raw = self._channel.raw
        await self._channel.call(raw.confirm_delivery, ack_nack_callback=self._confirmed)
        raw.add_on_return_callback(self._returned)
        # RabbitMQ tells only those who publish that there is an alarm: this message goes nowhere
        raw.basic_publish("", "", b"")
        self._last_tag = 1
        probe = self._unconfirmed[1] = _Batch("", 1, 0.0)
        probe.done.addCallback(self._prove)
        self._connection.on_blocked.append(self._blocked)
        self._channel.closed.addCallback(self._ended)
        await self._answer

    def publish(self, queue: str, messages: Sequence[Dispatch]) -> Deferred[None]:
        """Send messages; fires when each is confirmed and routed. Fails with BrokerUnavailable."""
        now = self._clock.seconds()
        batch = _Batch(queue, len(messages), now)
        if not self.ready:
            reason = self._connection.blocked or self._channel.lost or "it has not confirmed any yet"
            batch.fail(f"RabbitMQ takes no messages now: {reason}")
            return batch.done
        if not messages:
            batch.done.callback(None)
            return batch.done
        frames = self._frames.get(queue)
        if frames is None:
            frames = self._frames[queue] = PublishFrames(self._channel.number, queue)
        first = self._last_tag + 1
        self._last_tag += len(messages)
        self._unconfirmed.update(dict.fromkeys(range(first, self._last_tag + 1), batch))
        self._open[batch] = None
        if self._watch is None:
            self._watch = self._clock.callLater(CONFIRM_SECONDS, self._check)
        self._connection.write(frames.encode([b"%d %d" % message for message in messages]))
        return batch.done

    def _prove(self, _: None) -> None:
        self._proven = True
        if not self._answer.called:
            self._answer.callback(None)

    def _confirmed(self, frame: Any) -> None:
        method = frame.method
        last = method.delivery_tag
        tags = list(takewhile(lambda tag: tag <= last, self._unconfirmed)) if method.multiple else (last,)
        refused = isinstance(method, spec.Basic.Nack)
        for tag in tags:
            batch = self._unconfirmed.pop(tag, None)
            if batch is None:
                continue
            batch.left -= 1
            if refused:
                batch.fail("RabbitMQ refused a message")
            if not batch.left:
                self._open.pop(batch, None)
                if not batch.done.called:
                    batch.done.callback(None)

    def _returned(self, _: Any, method: Any, properties: Any, body: bytes) -> None:
        self._fail_open(f"there is no queue {method.routing_key}", method.routing_key)
        self._on_missing(method.routing_key)

    def _blocked(self) -> None:
        if self._connection.blocked:
            # they may get through later, twice then if they are published again
            self._fail_open(f"RabbitMQ takes no messages now: {self._connection.blocked}")
            if not self._answer.called:
                self._answer.callback(None)

    def _check(self) -> None:
        self._watch = None
        oldest = next(iter(self._open), None)
        if oldest is not None:
            left = oldest.sent + CONFIRM_SECONDS - self._clock.seconds()
            if left <= 0:
                self._connection.drop(f"a message was not confirmed within {CONFIRM_SECONDS:.0f} s")
            else:
                self._watch = self._clock.callLater(left, self._check)

    def _ended(self, reason: ConnectionLost) -> ConnectionLost:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        self._connection.on_blocked.remove(self._blocked)
        self._fail_open(str(reason))
        if not self._answer.called:
            self._answer.errback(reason)
        return reason

    def _fail_open(self, reason: str, queue: str | None = None) -> None:
        failing = [batch for batch in self._open if queue is None or batch.queue == queue]
        for batch in failing:
            self._open.pop(batch, None)
            batch.fail(reason)


class PublisherSupervisor(ChannelSupervisor):
    """Keeps a Publisher on each connection. ``on_missing`` gets the name of a queue that is not there."""

    def __init__(self, clock: IReactorTime, on_missing: Callable[[str], None], jitter: Callable[[], float]) -> None:
        super().__init__(clock, "publishing", jitter)
        self.publisher: Publisher | None = None
        self._on_missing = on_missing

    async def set_up(self, connection: Connection, channel: Channel) -> None:
        """A new publisher for the channel."""
        self.publisher = Publisher(self._clock, connection, channel, self._on_missing)
        await self.publisher.set_up()

    def ended(self) -> None:
        """No publisher until there is a new channel."""
        self.publisher = None


class EventSupervisor(ChannelSupervisor):
    """Keeps a channel for news on each connection.

    What had to be dropped, or was lost with a connection, is made up for by an empty message, which tells of a gap.
    """

    _PROPERTIES = BasicProperties(delivery_mode=1)

    def __init__(self, clock: IReactorTime, jitter: Callable[[], float]) -> None:
        super().__init__(clock, "announcing", jitter)
        self._connection: Connection | None = None
        self._channel: Channel | None = None
        self._missed = False

    async def set_up(self, connection: Connection, channel: Channel) -> None:
        """News can go out once the exchange is there."""
        await declare_exchanges(channel)
        self._connection, self._channel = connection, channel
        connection.on_blocked.append(self._tell_gap)
        self._tell_gap()

    def ended(self) -> None:
        """News are dropped until there is a new channel, and some may never have left."""
        if self._connection is not None:
            self._connection.on_blocked.remove(self._tell_gap)
        self._connection = self._channel = None
        self._missed = True

    def announce(self, news: bytes, topic: str) -> None:
        """Send news, or drop them where that cannot be."""
        if self._connection is None or self._channel is None or self._connection.blocked:
            self._missed = True
            return
        # a channel that has just closed is as good as one that closed before
        with suppress(AMQPError):
            self._channel.raw.basic_publish(EXCHANGES[topic], "", news, self._PROPERTIES)

    def _tell_gap(self) -> None:
        if self._missed and self._connection is not None and not self._connection.blocked:
            self._missed = False
            for topic in EXCHANGES:
                self.announce(b"", topic)
