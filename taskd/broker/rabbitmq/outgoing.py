"""What a process sends: hints to workers, and event batches. Nothing is confirmed: the store is the truth."""

from __future__ import annotations

from collections.abc import Iterable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from taskd.broker.rabbitmq.connection import Channel, Connection
from taskd.broker.rabbitmq.frames import PublishFrames
from taskd.broker.rabbitmq.names import BIND_SECONDS, EVENTS, NOTHING, Names, hint_key
from taskd.broker.rabbitmq.reconnecting import ChannelSupervisor

GAP = b""
"""The body of a message that reports lost events. Event batches are never empty."""

LOOK = b"look"
ORDERS = b"orders"
"""The bodies of hints."""

_REMEMBERED = 1000
"""Workers whose frames are kept. Names are never used again, so the oldest go."""


class Outgoing(ChannelSupervisor):
    """Sends on one channel. If events had to be dropped or may have been lost, a GAP message follows as soon as
    possible. Lost hints need none."""

    def __init__(self, clock: IReactorTime, names: Names) -> None:
        super().__init__(clock, "sending")
        self._names = names
        self._channel: Channel | None = None
        self._exchange = ""
        self._events: PublishFrames | None = None
        self._frames: dict[tuple[str, bool], bytes] = {}
        self._gap = False
        self._used: Connection | None = None

    @property
    def can_send(self) -> bool:
        """Whether there is a channel, and RabbitMQ reads what is sent."""
        channel = self._channel
        return channel is not None and channel.connection.can_publish

    async def set_up(self, channel: Channel) -> None:
        """Declare the exchange and keep it by a queue that gets nothing, then send on this channel."""
        # who consumes it learns that somebody has deleted it
        await self._names.consume(channel, "sender", NOTHING, _ignore, {})
        self._channel = channel
        self._exchange = self._names.exchange
        self._events = PublishFrames(channel.number, self._exchange, EVENTS, channel.connection.max_frame)
        self._frames.clear()
        channel.connection.on_blocked.append(self._publish_gap)
        # RabbitMQ reports an alarm only to connections that have published. No queue gets this message.
        channel.raw.basic_publish("", "", b"")
        self._publish_gap()
        if channel.connection is self._used:
            # the channel before this one was closed, perhaps because somebody has deleted the exchange
            self.exchange_missing()
        self._used = channel.connection

    def channel_closed(self) -> None:
        """Drop everything until there is a new channel. The last events may not have been sent."""
        if self._channel is not None:
            self._channel.connection.on_blocked.remove(self._publish_gap)
            self._channel = None
        self._gap = True

    def exchange_missing(self) -> None:
        """Somebody has deleted the exchange. Until all queues are bound again, events may reach nobody: report a gap
        then."""
        if self._channel is not None:
            Deferred.fromCoroutine(self._report_gap_later(self._channel.connection))

    async def _report_gap_later(self, connection: Connection) -> None:
        await connection.sleep(BIND_SECONDS + 1)
        if connection.is_open:
            self._gap = True
            self._publish_gap()

    def hint(self, workers: Iterable[str], orders: bool) -> None:
        """Send a hint to each of these workers at once, or drop them while that is not possible."""
        channel = self._channel
        if channel is None or channel.close_reason is not None or not self.can_send:
            return
        known = self._frames
        if len(known) > _REMEMBERED:
            known.clear()
        pieces = []
        for worker in workers:
            frames = known.get((worker, orders))
            if frames is None:
                body = ORDERS if orders else LOOK
                publish = PublishFrames(channel.number, self._exchange, hint_key(worker))
                frames = known[worker, orders] = publish.of(body)
            pieces.append(frames)
        channel.connection.transport.write(b"".join(pieces))
        channel.connection.flush()

    def announce(self, body: bytes) -> None:
        """Send an event batch to all subscribers, or drop it while that is not possible."""
        channel = self._channel
        if channel is None or channel.close_reason is not None or not self.can_send:
            self._gap = True
            return
        assert self._events is not None
        channel.connection.transport.write(self._events.of(body))

    def flush(self) -> None:
        """Send now what was announced, not in the reactor's next turn."""
        if self._channel is not None:
            self._channel.connection.flush()

    def _publish_gap(self, _: str | None = None) -> None:
        if self._gap:
            # announce sets it again if it cannot send now
            self._gap = False
            self.announce(GAP)


def _ignore(tag: int, redelivered: bool, body: bytes) -> None:
    """No message has its key."""
