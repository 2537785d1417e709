"""Consuming work with prefetch and acks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from math import inf

import msgspec
from pika.exceptions import AMQPError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from taskd.broker.rabbitmq.connection import Channel, ConnectionLost, no_answer
from taskd.broker.rabbitmq.reconnecting import ChannelSupervisor
from taskd.broker.rabbitmq.topology import Topology
from taskd.ports.broker import Delivery, IConsumer
from taskd.ports.scheduling import Dispatch

MAX_PREFETCH = 65_535
"""The largest prefetch count that AMQP 0-9-1 allows."""

CONSUME_SECONDS = 5.0
"""How long RabbitMQ may take to accept a consumer. After that the queue is suspected of having no leader."""

CANCEL_SECONDS = 5.0
"""How long RabbitMQ may take to confirm that a consumer has stopped."""

_MAX_TASK_ID = 2**63 - 1
_MAX_DISPATCH = 2**31 - 1


def parse_body(body: bytes) -> Dispatch | None:
    """The message of taskd in this body; None if it is not one."""
    task_id, _, dispatch = body.partition(b" ")
    if len(body) <= 30 and task_id.isdigit() and dispatch.isdigit():
        found = Dispatch(int(task_id), int(dispatch))
        if found.task_id <= _MAX_TASK_ID and found.dispatch <= _MAX_DISPATCH:
            return found
    return None


class _Deliveries(msgspec.Struct, eq=False):
    """The deliveries of one channel: the tags of those not acked, in the order of delivery, and those that the reactor
    has read in this turn and the consumer has not got yet. The ``tag`` of a Delivery is this object and AMQP's delivery
    tag."""

    channel: Channel
    unacked: dict[int, None] = {}
    incoming: list[Delivery] = []

    def acknowledge(self, deliveries: Sequence[Delivery], send: Callable[[int, bool], None]) -> None:
        """Forget deliveries and ``send`` an ack or nack for each: its tag, and whether it stands for all lower ones."""
        unacked, tags = self.unacked, []
        for delivery in deliveries:
            owner, tag = delivery.tag
            if owner is self and tag in unacked:
                del unacked[tag]
                tags.append(tag)
        if not tags or self.channel.close_reason is not None:
            return
        lowest = next(iter(unacked), inf)
        below = [tag for tag in tags if tag < lowest]
        # if the channel has just closed, RabbitMQ requeues the deliveries
        with suppress(AMQPError):
            if below:
                # all tags up to this one are acknowledged now or were before
                send(max(below), len(below) > 1)
            for tag in tags:
                if tag > lowest:
                    send(tag, False)


@implementer(IConsumer)
class RabbitConsumer(ChannelSupervisor):
    """IConsumer on the consuming connection, with one channel at a time."""

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        topology: Topology,
        queue: str,
        prefetch: int,
        on_deliveries: Callable[[Sequence[Delivery]], None],
        on_lost: Callable[[], None],
    ) -> None:
        super().__init__(clock, f"queue {queue}")
        self._topology = topology
        self._queue = queue
        self._prefetch = max(1, min(prefetch, MAX_PREFETCH))
        self._on_deliveries = on_deliveries
        self._on_lost = on_lost
        self._deliveries: _Deliveries | None = None
        self._consume_timed_out = False
        self._warned_of_foreign = False

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Tell RabbitMQ to forget deliveries."""
        self._settle(deliveries, "basic_ack")

    def requeue(self, deliveries: Sequence[Delivery]) -> None:
        """Give deliveries back, for any consumer."""
        # a nack requeues unless it says otherwise
        self._settle(deliveries, "basic_nack")

    async def stop(self) -> None:
        """Take no more deliveries. Those that were read but not handed over are requeued."""
        current = self._deliveries if self.ready else None
        self.stopped, self.ready = True, False
        if current is not None:
            with suppress(ConnectionLost):
                await current.channel.cancel().addTimeout(CANCEL_SECONDS, self._clock, no_answer)
                incoming, current.incoming = current.incoming, []
                self.requeue(incoming)

    # -- ChannelSupervisor

    async def set_up(self, channel: Channel) -> None:
        """Start consuming."""
        declared = await self._topology.declare_queue(channel.connection, self._queue)
        if self._consume_timed_out:
            await self._topology.replace_dead_queue(channel.connection, self._queue, declared)
        await channel.call("basic_qos", prefetch_count=self._prefetch)
        self._deliveries = _Deliveries(channel)
        consuming = channel.consume(self._queue, partial(self._on_message, self._deliveries), auto_ack=False)
        try:
            await consuming.addTimeout(CONSUME_SECONDS, self._clock, no_answer)
        except ConnectionLost:
            self._consume_timed_out = channel.connection.is_open and channel.close_reason is None
            raise
        self._consume_timed_out = False
        if self.stopped:
            channel.close("stopped")

    def channel_closed(self) -> None:
        """All deliveries of the channel are void."""
        last, self._deliveries = self._deliveries, None
        if last is not None and (last.unacked or not self.stopped):
            with self.log.failuresHandled("queue {queue}: on_lost failed", queue=self._queue):
                self._on_lost()

    # -- deliveries

    def _on_message(self, current: _Deliveries, tag: int, redelivered: bool, body: bytes) -> None:
        found = parse_body(body)
        current.unacked[tag] = None
        if found is None:
            self._drop_foreign(current, tag, body)
            return
        if not current.incoming:
            self._clock.callLater(0, self._hand_over, current)
        current.incoming.append(Delivery(found.task_id, found.dispatch, redelivered, (current, tag)))

    def _hand_over(self, current: _Deliveries) -> None:
        # a stopped consumer requeues them instead
        if current is self._deliveries and not self.stopped:
            deliveries, current.incoming = current.incoming, []
            with self.log.failuresHandled("queue {queue}: on_deliveries failed", queue=self._queue):
                self._on_deliveries(deliveries)

    def _drop_foreign(self, current: _Deliveries, tag: int, body: bytes) -> None:
        if not self._warned_of_foreign:
            self._warned_of_foreign = True
            text = "queue {queue}: dropped a message that is not from taskd; others will be dropped silently: {body!r}"
            self.log.warn(text, queue=self._queue, body=body[:60])
        current.acknowledge([Delivery(0, 0, False, (current, tag))], current.channel.raw.basic_ack)

    def _settle(self, deliveries: Sequence[Delivery], method: str) -> None:
        current = self._deliveries
        if current is not None:
            current.acknowledge(deliveries, getattr(current.channel.raw, method))
            if self.stopped and not current.unacked:
                current.channel.close("stopped")
