"""The broker of the embedded server: queues in this process.

It keeps nothing: the messages are lost when the process ends, and the next start dispatches the tasks again from the
store. The clock delivers everything in a later turn, never inside the call that caused it, as a network does.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from functools import partial

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from taskd.model.errors import BrokerUnavailable
from taskd.ports.broker import CHANGES, Delivery, IBroker, IConsumer
from taskd.ports.scheduling import Dispatch


@implementer(IConsumer)
class MemoryConsumer:
    """A consumer; ``unacked`` are its deliveries that are not acked yet."""

    def __init__(
        self,
        queue: _Queue,
        prefetch: int,
        on_deliveries: Callable[[Sequence[Delivery]], None],
        on_lost: Callable[[], None],
    ) -> None:
        self.ready = True
        self.unacked: set[Delivery] = set()
        self.on_deliveries = on_deliveries
        self.on_lost = on_lost
        self._queue = queue
        self._prefetch = prefetch

    @property
    def takes_more(self) -> bool:
        """Whether the prefetch count allows one more delivery."""
        return self.ready and len(self.unacked) < self._prefetch

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        self.unacked.difference_update(deliveries)
        if self._queue.messages:
            self._queue.wake()

    def requeue(self, deliveries: Sequence[Delivery]) -> None:
        requeued = [d for d in deliveries if d in self.unacked]
        self.unacked.difference_update(requeued)
        self._queue.messages.extendleft(Delivery(d.task_id, d.dispatch, True, None) for d in reversed(requeued))
        self._queue.wake()

    async def stop(self) -> None:
        self.ready = False

    def close(self) -> None:
        """Requeue the unacked deliveries, as the end of a channel does."""
        self.requeue(sorted(self.unacked, key=lambda d: d.task_id))


class _Queue:
    """Messages in order, and the consumers that receive them in turn. After ``wake`` the broker calls ``deliver``."""

    _log = Logger()

    def __init__(self, wake: Callable[[], None]) -> None:
        self.messages: deque[Delivery] = deque()
        self.consumers: list[MemoryConsumer] = []
        self.wake = wake
        self._next = 0

    def close(self) -> None:
        """Close all consumers, which requeues their unacked deliveries."""
        consumers, self.consumers = self.consumers, []
        for consumer in consumers:
            consumer.ready = False
            consumer.close()
            with self._log.failuresHandled("a consumer failed"):
                consumer.on_lost()

    def deliver(self) -> None:
        """Hand over as many messages as the consumers take."""
        shares: dict[MemoryConsumer, list[Delivery]] = {}
        order = [consumer for consumer in self.consumers if consumer.takes_more]
        while self.messages and order:
            self._next = (self._next + 1) % len(order)
            consumer = order[self._next]
            delivery = self.messages.popleft()
            consumer.unacked.add(delivery)
            shares.setdefault(consumer, []).append(delivery)
            if not consumer.takes_more:
                order.remove(consumer)
        for consumer, deliveries in shares.items():
            with self._log.failuresHandled("a consumer failed"):
                consumer.on_deliveries(deliveries)


@implementer(IBroker)
class MemoryBroker:
    """IBroker in this process."""

    _log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        self.ready = False
        self._clock = clock
        self._queues: defaultdict[str, _Queue] = defaultdict(partial(_Queue, self._wake))
        self._subscribers: dict[str, list[Callable[[bytes], None]]] = {}
        self._events: list[tuple[str, bytes]] = []
        self._turn: IDelayedCall | None = None

    @property
    def consuming(self) -> bool:
        """True while messages can arrive."""
        return self.ready

    async def start(self) -> None:
        self.ready = True
        self._wake()

    async def stop(self) -> None:
        self.ready = False
        self._events.clear()
        for queue in self._queues.values():
            queue.close()
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None

    async def publish(self, queue: str, messages: Sequence[Dispatch]) -> None:
        found = self._ready_queue(queue)
        found.messages.extend([Delivery(m.task_id, m.dispatch, False, None) for m in messages])
        self._wake()

    def consume(
        self,
        queue: str,
        prefetch: int,
        on_deliveries: Callable[[Sequence[Delivery]], None],
        on_lost: Callable[[], None],
    ) -> MemoryConsumer:
        found = self._queues[queue]
        consumer = MemoryConsumer(found, prefetch, on_deliveries, on_lost)
        found.consumers.append(consumer)
        self._wake()
        return consumer

    async def depth(self, queue: str) -> int:
        return len(self._ready_queue(queue).messages)

    def announce(self, batch: bytes, topic: str = CHANGES) -> None:
        if self.ready and topic in self._subscribers:
            self._events.append((topic, batch))
            self._wake()

    def subscribe(self, on_batch: Callable[[bytes], None], on_gap: Callable[[], None], topic: str = CHANGES) -> None:
        self._subscribers.setdefault(topic, []).append(on_batch)

    def _ready_queue(self, name: str) -> _Queue:
        if not self.ready:
            raise BrokerUnavailable("the broker is stopped")
        return self._queues[name]

    def _wake(self) -> None:
        if self._turn is None and self.ready:
            self._turn = self._clock.callLater(0, self._deliver)

    def _deliver(self) -> None:
        self._turn = None
        events, self._events = self._events, []
        for topic, body in events:
            for subscriber in tuple(self._subscribers[topic]):
                with self._log.failuresHandled("an event listener failed"):
                    subscriber(body)
        for queue in tuple(self._queues.values()):
            if queue.messages:
                queue.deliver()
