"""Consuming work with acks, and news without."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pika.exceptions import AMQPError
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from taskd.broker.rabbitmq.connection import Channel, Connection, ConnectionLost, within
from taskd.broker.rabbitmq.reconnecting import ChannelSupervisor
from taskd.broker.rabbitmq.topology import EXCHANGES, NEWS_QUEUE, Topology, declare_exchanges
from taskd.ports.broker import Delivery, IConsumer
from taskd.ports.scheduling import Dispatch

MAX_PREFETCH = 65_535
"""What the protocol has room for."""

BIND_SECONDS = 30.0
"""How often a subscription is bound again, in case the exchange was deleted and made anew."""

CONSUME_SECONDS = 5.0
"""How long RabbitMQ may take to begin delivering before the queue is suspected of having no leader."""

CANCEL_SECONDS = 5.0
"""How long a consumer waits for RabbitMQ to agree that it has stopped."""

_MAX_TASK_ID = 2**63 - 1
_MAX_DISPATCH = 2**31 - 1


def read_body(body: bytes) -> Dispatch | None:
    """What a message says; None where it is none of taskd's."""
    task_id, _, dispatch = body.partition(b" ")
    if len(body) <= 30 and task_id.isdigit() and dispatch.isdigit():
        found = Dispatch(int(task_id), int(dispatch))
        if found.task_id <= _MAX_TASK_ID and found.dispatch <= _MAX_DISPATCH:
            return found
    return None


class _Held:
    """The deliveries of one channel: those not acked, by their tags in the order of delivery, and those of this turn
    of the reactor, not handed over yet. A delivery's tag is this object and its number."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.unacked: dict[int, None] = {}
        self.incoming: list[Delivery] = []

    def settle(self, deliveries: Sequence[Delivery], send: Callable[[int, bool], None]) -> None:
        """Forget deliveries and ``send`` their tags; True beside a tag means all up to it."""
        unacked, tags = self.unacked, []
        for delivery in deliveries:
            held, tag = delivery.tag
            if held is self and tag in unacked:
                del unacked[tag]
                tags.append(tag)
        if not tags or self.channel.lost is not None:
            return
        lowest = next(iter(unacked), None)
        below = tags if lowest is None else [tag for tag in tags if tag < lowest]
        above = () if lowest is None else [tag for tag in tags if tag > lowest]
        try:
            if below:
                # everything up to here is settled now or has been before
                send(max(below), len(below) > 1)
            for tag in above:
                send(tag, False)
        except AMQPError:
            # it has just closed, so the deliveries go back by themselves
            pass


@implementer(IConsumer)
class RabbitConsumer(ChannelSupervisor):
    """IConsumer on the consuming connection: a channel at a time."""

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        topology: Topology,
        queue: str,
        prefetch: int,
        on_deliveries: Callable[[Sequence[Delivery]], None],
        on_lost: Callable[[], None],
        jitter: Callable[[], float],
    ) -> None:
        super().__init__(clock, f"queue {queue}", jitter)
        self._topology = topology
        self._queue = queue
        self._prefetch = max(1, min(prefetch, MAX_PREFETCH))
        self._on_deliveries = on_deliveries
        self._on_lost = on_lost
        self._held: _Held | None = None
        self._unanswered = False
        self._seen_foreign = False

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Settle deliveries for good."""
        if self._held is not None:
            raw = self._held.channel.raw
            self._held.settle(deliveries, lambda tag, multiple: raw.basic_ack(tag, multiple))
            self._close_if_done()

    def requeue(self, deliveries: Sequence[Delivery]) -> None:
        """Give deliveries back, for any consumer."""
        if self._held is not None:
            raw = self._held.channel.raw
            self._held.settle(deliveries, lambda tag, multiple: raw.basic_nack(tag, multiple, True))
            self._close_if_done()

    async def stop(self) -> None:
        """Take no more deliveries. What has come but was not handed over goes back."""
        if self.stopped:
            return
        self.stopped = True
        was_ready, self.ready = self.ready, False
        held = self._held
        if held is not None and was_ready:
            try:
                await within(self._clock, CANCEL_SECONDS, held.channel.cancel())
            except ConnectionLost:
                return
            incoming, held.incoming = held.incoming, []
            self.requeue(incoming)

    # -- Keeper

    async def set_up(self, connection: Connection, channel: Channel) -> None:
        """Begin to consume."""
        declared = await self._topology.declare_queue(connection, self._queue)
        if self._unanswered:
            await self._topology.revive_queue(connection, self._queue, declared)
        await channel.call(channel.raw.basic_qos, prefetch_count=self._prefetch)
        held = self._held = _Held(channel)
        consuming = channel.consume(self._queue, lambda *message: self._take(held, *message), auto_ack=False)
        try:
            await within(self._clock, CONSUME_SECONDS, consuming)
        except ConnectionLost:
            self._unanswered = connection.is_open and channel.lost is None
            raise
        self._unanswered = False
        if self.stopped:
            channel.close(ConnectionLost("stopped"))

    def ended(self) -> None:
        """The channel is gone, and every delivery with it."""
        held, self._held = self._held, None
        if held is not None and (held.unacked or not self.stopped):
            try:
                self._on_lost()
            except Exception:
                self.log.failure("queue {queue}: on_lost failed", queue=self._queue)

    # -- deliveries

    def _take(self, held: _Held, tag: int, redelivered: bool, body: bytes) -> None:
        found = read_body(body)
        held.unacked[tag] = None
        if found is None:
            self._drop_foreign(held, tag, body)
            return
        if not held.incoming:
            self._clock.callLater(0, self._hand_over, held)
        held.incoming.append(Delivery(found.task_id, found.dispatch, redelivered, (held, tag)))

    def _hand_over(self, held: _Held) -> None:
        # once stopped, they are not handed over but given back
        if held is self._held and not self.stopped:
            deliveries, held.incoming = held.incoming, []
            try:
                self._on_deliveries(deliveries)
            except Exception:
                self.log.failure("queue {queue}: on_deliveries failed", queue=self._queue)

    def _drop_foreign(self, held: _Held, tag: int, body: bytes) -> None:
        if not self._seen_foreign:
            self._seen_foreign = True
            text = "queue {queue}: dropped a message that is none of ours, and will drop all such: {body!r}"
            self.log.warn(text, queue=self._queue, body=body[:60])
        held.settle([Delivery(0, 0, False, (held, tag))], lambda t, multiple: held.channel.raw.basic_ack(t, multiple))

    def _close_if_done(self) -> None:
        if self.stopped and self._held is not None and not self._held.unacked:
            self._held.channel.close(ConnectionLost("stopped"))


class Subscription(ChannelSupervisor):
    """News of one topic for this process: one queue for all its listeners, as long as its channel lives."""

    log = Logger()

    def __init__(self, clock: IReactorTime, topic: str, jitter: Callable[[], float]) -> None:
        super().__init__(clock, f"news of {topic}", jitter)
        self._exchange = EXCHANGES[topic]
        self._listeners: list[tuple[Callable[[bytes], None], Callable[[], None]]] = []

    def add(self, on_news: Callable[[bytes], None], on_gap: Callable[[], None]) -> None:
        """One more listener."""
        self._listeners.append((on_news, on_gap))

    async def set_up(self, connection: Connection, channel: Channel) -> None:
        """Begin to hear. What was said until now was missed."""
        await declare_exchanges(channel)
        declared = await channel.call(
            channel.raw.queue_declare, queue="", exclusive=True, auto_delete=True, arguments=NEWS_QUEUE
        )
        queue = declared.method.queue
        await channel.call(channel.raw.queue_bind, queue=queue, exchange=self._exchange)
        await channel.consume(queue, self._take, auto_ack=True)
        bound = Deferred.fromCoroutine(self._bind_again(connection, channel, queue))
        bound.addErrback(lambda f: self.log.failure("binding again failed", f))
        self._gap()

    async def _bind_again(self, connection: Connection, channel: Channel, queue: str) -> None:
        # nobody tells a queue that its exchange was deleted, and with it the binding
        while True:
            await connection.sleep(BIND_SECONDS)
            try:
                await channel.call(channel.raw.queue_bind, queue=queue, exchange=self._exchange)
            except ConnectionLost:
                return

    def _take(self, tag: int, redelivered: bool, body: bytes) -> None:
        if not body:
            # somebody could not send all of theirs
            self._gap()
        for on_news, _ in self._listeners if body else ():
            self._tell(on_news, body)

    def _gap(self) -> None:
        for _, on_gap in self._listeners:
            self._tell(on_gap)

    def _tell(self, listener: Callable[..., None], *news: Any) -> None:
        try:
            listener(*news)
        except Exception:
            self.log.failure("a listener to the news failed")
