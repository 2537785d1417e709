"""The broker of the embedded server: queues in this process.

It keeps nothing: the messages are lost when the process ends, and the next start dispatches the tasks again from the
store. The clock delivers everything in a later turn, never inside the call that caused it, as a network does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

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
    def free(self) -> int:
        """How many more deliveries the prefetch count allows."""
        return self._prefetch - len(self.unacked) if self.ready else 0

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        self.unacked.difference_update(deliveries)
        self._queue.deliver_soon()

    def requeue(self, deliveries: Sequence[Delivery]) -> None:
        requeued = [d for d in deliveries if d in self.unacked]
        self.unacked.difference_update(requeued)
        self._queue.requeue(requeued)

    async def stop(self) -> None:
        self.ready = False

    def close(self) -> None:
        """Requeue the unacked deliveries, as the end of a channel does."""
        requeued = sorted(self.unacked, key=lambda d: d.task_id)
        self.unacked.clear()
        self._queue.requeue(requeued)


class _Queue:
    """Messages in order, and the consumers that receive them in turn."""

    _log = Logger()

    def __init__(self, name: str, clock: IReactorTime) -> None:
        self._name = name
        self._clock = clock
        self._messages: deque[tuple[int, int, bool]] = deque()
        self._delivery: IDelayedCall | None = None
        self._next = 0
        self.consumers: list[MemoryConsumer] = []

    def __len__(self) -> int:
        return len(self._messages)

    def put(self, messages: Sequence[Dispatch]) -> None:
        """Add messages at the end."""
        self._messages.extend([(m.task_id, m.dispatch, False) for m in messages])
        self.deliver_soon()

    def requeue(self, deliveries: Sequence[Delivery]) -> None:
        """Put deliveries back at the front."""
        self._messages.extendleft([(d.task_id, d.dispatch, True) for d in reversed(deliveries)])
        self.deliver_soon()

    def deliver_soon(self) -> None:
        """Deliver in the reactor's next turn."""
        if self._messages and self.consumers and self._delivery is None:
            self._delivery = self._clock.callLater(0, self._deliver)

    def close(self) -> None:
        """Close all consumers, which requeues their unacked deliveries."""
        if self._delivery is not None:
            self._delivery.cancel()
            self._delivery = None
        consumers, self.consumers = self.consumers, []
        for consumer in consumers:
            consumer.ready = False
            consumer.close()
            self._call(consumer.on_lost)

    def _call(self, callback: Callable[..., None], *arguments: Sequence[Delivery]) -> None:
        # a defect of one consumer must not stop the others
        try:
            callback(*arguments)
        except Exception:
            self._log.failure("queue {queue}: a consumer failed", queue=self._name)

    def _deliver(self) -> None:
        self._delivery = None
        shares: dict[MemoryConsumer, list[Delivery]] = {}
        free = {c: c.free for c in self.consumers if c.free > 0}
        order = list(free)
        while self._messages and order:
            self._next = (self._next + 1) % len(order)
            consumer = order[self._next]
            task_id, dispatch, redelivered = self._messages.popleft()
            delivery = Delivery(task_id, dispatch, redelivered, None)
            consumer.unacked.add(delivery)
            shares.setdefault(consumer, []).append(delivery)
            free[consumer] -= 1
            if not free[consumer]:
                order.remove(consumer)
        for consumer, deliveries in shares.items():
            self._call(consumer.on_deliveries, deliveries)


@implementer(IBroker)
class MemoryBroker:
    """IBroker in this process."""

    _log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        self.ready = False
        self._clock = clock
        self._queues: dict[str, _Queue] = {}
        self._subscribers: dict[str, list[Callable[[bytes], None]]] = {}
        self._events: list[tuple[str, bytes]] = []
        self._sending: IDelayedCall | None = None

    async def start(self) -> None:
        self.ready = True

    async def stop(self) -> None:
        self.ready = False
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None
            self._events.clear()
        for queue in self._queues.values():
            queue.close()

    async def publish(self, queue: str, messages: Sequence[Dispatch]) -> None:
        self._check()
        self._queue(queue).put(messages)

    def consume(
        self,
        queue: str,
        prefetch: int,
        on_deliveries: Callable[[Sequence[Delivery]], None],
        on_lost: Callable[[], None],
    ) -> MemoryConsumer:
        found = self._queue(queue)
        consumer = MemoryConsumer(found, prefetch, on_deliveries, on_lost)
        found.consumers.append(consumer)
        found.deliver_soon()
        return consumer

    async def depth(self, queue: str) -> int:
        self._check()
        return len(self._queue(queue))

    def announce(self, news: bytes, topic: str = CHANGES) -> None:
        if not self.ready or topic not in self._subscribers:
            return
        self._events.append((topic, news))
        if self._sending is None:
            self._sending = self._clock.callLater(0, self._send)

    def subscribe(self, on_news: Callable[[bytes], None], on_gap: Callable[[], None], topic: str = CHANGES) -> None:
        self._subscribers.setdefault(topic, []).append(on_news)

    def _check(self) -> None:
        if not self.ready:
            raise BrokerUnavailable("the broker is stopped")

    def _queue(self, name: str) -> _Queue:
        found = self._queues.get(name)
        if found is None:
            found = self._queues[name] = _Queue(name, self._clock)
        return found

    def _send(self) -> None:
        self._sending = None
        events, self._events = self._events, []
        for topic, body in events:
            for subscriber in tuple(self._subscribers[topic]):
                try:
                    subscriber(body)
                except Exception:
                    self._log.failure("an event listener failed")
