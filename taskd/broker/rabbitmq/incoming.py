"""What a process receives: the hints for a worker, and the event batches of all processes. Nothing is acked."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from taskd.broker.rabbitmq.connection import Channel, ConnectionLost
from taskd.broker.rabbitmq.names import BIND_SECONDS, EVENTS, Names, hint_key
from taskd.broker.rabbitmq.outgoing import GAP, ORDERS
from taskd.broker.rabbitmq.reconnecting import ChannelSupervisor
from taskd.ports.broker import IHints

EVENT_QUEUE = {"x-overflow": "drop-head", "x-max-length": 10_000, "x-message-ttl": 60_000}
"""Arguments of a subscriber's queue: older events are useless to a subscriber that is so late. Time in milliseconds."""

HINT_QUEUE = {"x-overflow": "drop-head", "x-max-length": 10}
"""Arguments of a worker's queue: one hint says as much as many."""


class Receiver(ChannelSupervisor):
    """Consumes one exclusive queue, which lives as long as its channel. ``on_missing`` is called when somebody has
    deleted the exchange, which is there again."""

    log = Logger()

    def __init__(self, clock: IReactorTime, names: Names, purpose: str, on_missing: Callable[[], None]) -> None:
        super().__init__(clock, purpose)
        self._names = names
        self._on_missing = on_missing

    async def consume(self, channel: Channel, purpose: str, arguments: Mapping[str, object], key: str) -> None:
        """Consume from a new queue that gets the messages with this routing key. Raises ConnectionLost."""
        queue = await self._names.consume(channel, purpose, key, self.on_message, arguments)
        binding = Deferred.fromCoroutine(self._keep_bound(channel, queue, key))
        binding.addErrback(lambda f: self.log.failure("binding a queue again failed", f))

    def on_message(self, tag: int, redelivered: bool, body: bytes) -> None:
        """A message has arrived."""
        raise NotImplementedError

    async def _keep_bound(self, channel: Channel, queue: str, key: str) -> None:
        told = False
        while True:
            await channel.connection.sleep(BIND_SECONDS)
            if channel.close_reason is not None:
                return
            try:
                missing = await self._names.bind_again(channel.connection, queue, key)
            except ConnectionLost as e:
                if channel.close_reason is None and not told:
                    told = True
                    self.log.warn(
                        "{purpose}: the queue cannot be bound again: {why}", purpose=self._purpose, why=str(e)
                    )
                continue
            told = False
            if missing:
                self._on_missing()


@implementer(IHints)
class HintReceiver(Receiver):
    """IHints on RabbitMQ."""

    def __init__(
        self,
        clock: IReactorTime,
        names: Names,
        worker: str,
        on_hint: Callable[[bool], None],
        on_lost: Callable[[], None],
        on_missing: Callable[[], None],
    ) -> None:
        super().__init__(clock, names, f"hints for {worker}", on_missing)
        self._worker = worker
        self._on_hint = on_hint
        self._on_lost = on_lost
        self._channel: Channel | None = None
        self._orders = False
        self._turn: IDelayedCall | None = None

    def stop(self) -> None:
        """Receive no more."""
        self.stopped, self.ready = True, False
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        if self._channel is not None:
            self._channel.close("stopped")

    async def set_up(self, channel: Channel) -> None:
        """Consume from a new queue. Earlier hints were missed."""
        self._channel = channel
        await self.consume(channel, f"worker.{self._worker}", HINT_QUEUE, hint_key(self._worker))
        if self.stopped:
            channel.close("stopped")
        else:
            self._clock.callLater(0, self._lost)

    def channel_closed(self) -> None:
        """No hint arrives until there is a new channel."""
        self._channel = None
        self._lost()

    def on_message(self, tag: int, redelivered: bool, body: bytes) -> None:
        """Several hints that the reactor reads in one turn are one."""
        self._orders = self._orders or body == ORDERS
        if self._turn is None and not self.stopped:
            self._turn = self._clock.callLater(0, self._hand_over)

    def _hand_over(self) -> None:
        self._turn = None
        orders, self._orders = self._orders, False
        with self.log.failuresHandled("hints for {worker}: the receiver failed", worker=self._worker):
            self._on_hint(orders)

    def _lost(self) -> None:
        if not self.stopped:
            with self.log.failuresHandled("hints for {worker}: the receiver failed", worker=self._worker):
                self._on_lost()


class EventSubscription(Receiver):
    """The events for this process: one queue for all listeners."""

    def __init__(self, clock: IReactorTime, names: Names, on_missing: Callable[[], None]) -> None:
        super().__init__(clock, names, "events", on_missing)
        self.listeners: list[tuple[Callable[[bytes], None], Callable[[], None]]] = []

    async def set_up(self, channel: Channel) -> None:
        """Consume from a new queue. Earlier events were missed."""
        await self.consume(channel, "events", EVENT_QUEUE, EVENTS)
        self._report_gap()

    def on_message(self, tag: int, redelivered: bool, body: bytes) -> None:
        """A batch, or a gap."""
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
