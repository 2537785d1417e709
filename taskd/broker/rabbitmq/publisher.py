"""Publishing work with publisher confirms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any

import msgspec
from pika import spec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from taskd.broker.rabbitmq.connection import Channel, ConnectionLost
from taskd.broker.rabbitmq.frames import PublishFrames
from taskd.broker.rabbitmq.reconnecting import ChannelSupervisor
from taskd.model.errors import BrokerUnavailable
from taskd.ports.scheduling import Dispatch

CONFIRM_SECONDS = 10.0
"""How long RabbitMQ may take to confirm a message before the connection is aborted."""


class _Batch(msgspec.Struct, eq=False):
    """The messages of one publish call; ``remaining`` counts the unconfirmed ones. ``sent`` is in seconds."""

    queue: str
    remaining: int
    sent: float
    done: Deferred[None] = msgspec.field(default_factory=Deferred)

    def succeed(self) -> None:
        """Succeed, unless the batch has ended already."""
        if not self.done.called:
            self.done.callback(None)

    def fail(self, reason: str) -> None:
        """Fail with this reason, unless the batch has ended already."""
        if not self.done.called:
            self.done.errback(BrokerUnavailable(reason))


class Publisher:
    """Publishes on one channel in confirm mode, until the channel closes.

    RabbitMQ first returns a message that it cannot route, then confirms it. A return means that the queue was deleted,
    so every open batch of that queue fails: its other messages are lost too. Messages need no ids for this. No batch
    succeeds by mistake, because the return of a message comes before its confirm, while its batch is open.
    """

    def __init__(self, clock: IReactorTime, channel: Channel, on_missing_queue: Callable[[str], None]) -> None:
        self._clock = clock
        self._connection = channel.connection
        self._channel = channel
        self._on_missing_queue = on_missing_queue
        self._frames: dict[str, PublishFrames] = {}
        self._last_tag = 1
        self._probe = _Batch("", 1, 0.0)
        self._unconfirmed = {1: self._probe}
        self._open_batches: dict[_Batch, None] = {}
        self._timer: IDelayedCall | None = None

    @property
    def obstacle(self) -> object:
        """Why messages cannot be published now; None if they can."""
        unknown = "it has not confirmed a message on this connection yet" if self._probe.remaining else None
        return self._connection.blocked or self._channel.close_reason or unknown

    async def set_up(self) -> None:
        """Turn confirms on, and wait until RabbitMQ confirms a probe or blocks publishing. Raises ConnectionLost."""
        raw = self._channel.raw
        await self._channel.call("confirm_delivery", ack_nack_callback=self._on_confirm)
        raw.add_on_return_callback(self._on_return)
        # RabbitMQ reports an alarm only to connections that have published. No queue gets this message.
        raw.basic_publish("", "", b"")
        self._connection.on_blocked.append(self._on_blocked)
        self._channel.closed.addCallback(self._on_closed)
        await self._probe.done

    def publish(self, queue: str, messages: Sequence[Dispatch]) -> Deferred[None]:
        """Send messages; fires when each is confirmed and routed. Fails with BrokerUnavailable."""
        batch = _Batch(queue, len(messages), self._clock.seconds())
        if self.obstacle:
            batch.fail(f"RabbitMQ takes no messages now: {self.obstacle}")
            return batch.done
        if not messages:
            batch.succeed()
            return batch.done
        frames = self._frames.get(queue)
        if frames is None:
            frames = self._frames[queue] = PublishFrames(self._channel.number, queue)
        first = self._last_tag + 1
        self._last_tag += len(messages)
        self._unconfirmed.update(dict.fromkeys(range(first, self._last_tag + 1), batch))
        self._open_batches[batch] = None
        if self._timer is None:
            self._timer = self._clock.callLater(CONFIRM_SECONDS, self._check_oldest)
        self._connection.transport.write(frames.encode([b"%d %d" % message for message in messages]))
        return batch.done

    def _on_confirm(self, frame: Any) -> None:
        method = frame.method
        last = method.delivery_tag
        tags = list(takewhile(lambda tag: tag <= last, self._unconfirmed)) if method.multiple else (last,)
        refused = isinstance(method, spec.Basic.Nack)
        for tag in tags:
            batch = self._unconfirmed.pop(tag, None)
            if batch is None:
                continue
            batch.remaining -= 1
            if refused:
                batch.fail("RabbitMQ refused a message")
            if not batch.remaining:
                self._open_batches.pop(batch, None)
                batch.succeed()

    def _on_return(self, _: Any, method: Any, properties: Any, body: bytes) -> None:
        self._fail_open(f"there is no queue {method.routing_key}", method.routing_key)
        self._on_missing_queue(method.routing_key)

    def _on_blocked(self, reason: str | None) -> None:
        if reason:
            # RabbitMQ may still read these messages later: published again, they arrive twice, which is harmless
            self._fail_open(f"RabbitMQ takes no messages now: {reason}")
            self._probe.succeed()

    def _check_oldest(self) -> None:
        self._timer = None
        oldest = next(iter(self._open_batches), None)
        if oldest is not None:
            left = oldest.sent + CONFIRM_SECONDS - self._clock.seconds()
            if left <= 0:
                self._connection.abort(f"a message was not confirmed within {CONFIRM_SECONDS:.0f} s")
            else:
                self._timer = self._clock.callLater(left, self._check_oldest)

    def _on_closed(self, reason: ConnectionLost) -> ConnectionLost:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._connection.on_blocked.remove(self._on_blocked)
        self._fail_open(str(reason))
        if not self._probe.done.called:
            self._probe.done.errback(reason)
        return reason

    def _fail_open(self, reason: str, queue: str | None = None) -> None:
        failing = [batch for batch in self._open_batches if queue is None or batch.queue == queue]
        for batch in failing:
            self._open_batches.pop(batch, None)
            batch.fail(reason)


class PublisherSupervisor(ChannelSupervisor):
    """Keeps a Publisher on each connection. ``on_missing_queue`` gets the name of a queue that does not exist."""

    def __init__(self, clock: IReactorTime, on_missing_queue: Callable[[str], None]) -> None:
        super().__init__(clock, "publishing work")
        self.publisher: Publisher | None = None
        self._on_missing_queue = on_missing_queue

    async def set_up(self, channel: Channel) -> None:
        """Make a publisher for the channel."""
        self.publisher = Publisher(self._clock, channel, self._on_missing_queue)
        await self.publisher.set_up()

    def channel_closed(self) -> None:
        """There is no publisher until there is a new channel."""
        self.publisher = None
