"""The broker of the embedded server: queues in this process.

It keeps nothing: when the process ends its messages are gone, and the store hands the tasks out again at the next
start. Everything is delivered from the clock, never inside the call that caused it, as over a network.
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
    """One subscription; ``held`` are its deliveries that are not acked yet."""

    def __init__(
        self,
        queue: _Queue,
        prefetch: int,
        on_deliveries: Callable[[Sequence[Delivery]], None],
        on_lost: Callable[[], None],
    ) -> None:
        self.ready = True
        self.held: set[Delivery] = set()
        self.on_deliveries = on_deliveries
        self.on_lost = on_lost
        self._queue = queue
        self._prefetch = prefetch

    @property
    def room(self) -> int:
        """How many more deliveries it may hold."""
        return self._prefetch - len(self.held) if self.ready else 0

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        self.held.difference_update(deliveries)
        self._queue.deliver_soon()

    def requeue(self, deliveries: Sequence[Delivery]) -> None:
        back = [d for d in deliveries if d in self.held]
        self.held.difference_update(back)
        self._queue.put_back(back)

    async def stop(self) -> None:
        self.ready = False

    def close(self) -> None:
        """The channel is gone, and its unacked deliveries return to the queue."""
        back = sorted(self.held, key=lambda d: d.task_id)
        self.held.clear()
        self._queue.put_back(back)


class _Queue:
    """Messages in order, and the consumers that take turns."""

    _log = Logger()

    def __init__(self, name: str, clock: IReactorTime) -> None:
        self._name = name
        self._clock = clock
        self._messages: deque[tuple[int, int, bool]] = deque()
        self._soon: IDelayedCall | None = None
        self._next = 0
        self.consumers: list[MemoryConsumer] = []

    def __len__(self) -> int:
        return len(self._messages)

    def put(self, messages: Sequence[Dispatch]) -> None:
        """Add messages at the end."""
        self._messages.extend([(m.task_id, m.dispatch, False) for m in messages])
        self.deliver_soon()

    def put_back(self, deliveries: Sequence[Delivery]) -> None:
        """Return what was delivered before, to the front."""
        self._messages.extendleft([(d.task_id, d.dispatch, True) for d in reversed(deliveries)])
        self.deliver_soon()

    def deliver_soon(self) -> None:
        """Deliver in the reactor's next turn."""
        if self._messages and self.consumers and self._soon is None:
            self._soon = self._clock.callLater(0, self._deliver)

    def close(self) -> None:
        """End all consumers. What they hold returns to the queue."""
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        consumers, self.consumers = self.consumers, []
        for consumer in consumers:
            consumer.ready = False
            consumer.close()
            self._tell(consumer.on_lost)

    def _tell(self, callback: Callable[..., None], *arguments: Sequence[Delivery]) -> None:
        # a defect of one consumer is none of the others' business
        try:
            callback(*arguments)
        except Exception:
            self._log.failure("queue {queue}: a consumer failed", queue=self._name)

    def _deliver(self) -> None:
        self._soon = None
        shares: dict[MemoryConsumer, list[Delivery]] = {}
        room = {c: c.room for c in self.consumers if c.room > 0}
        order = list(room)
        while self._messages and order:
            self._next = (self._next + 1) % len(order)
            consumer = order[self._next]
            task_id, dispatch, redelivered = self._messages.popleft()
            delivery = Delivery(task_id, dispatch, redelivered, None)
            consumer.held.add(delivery)
            shares.setdefault(consumer, []).append(delivery)
            room[consumer] -= 1
            if not room[consumer]:
                order.remove(consumer)
        for consumer, deliveries in shares.items():
            self._tell(consumer.on_deliveries, deliveries)


@implementer(IBroker)
class MemoryBroker:
    """IBroker in this process."""

    _log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        self.ready = False
        self._clock = clock
        self._queues: dict[str, _Queue] = {}
        self._subscribers: dict[str, list[Callable[[bytes], None]]] = {}
        self._news: list[tuple[str, bytes]] = []
        self._soon: IDelayedCall | None = None

    async def start(self) -> None:
        self.ready = True

    async def stop(self) -> None:
        self.ready = False
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
            self._news.clear()
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
        self._news.append((topic, news))
        if self._soon is None:
            self._soon = self._clock.callLater(0, self._tell)

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

    def _tell(self) -> None:
        self._soon = None
        news, self._news = self._news, []
        for topic, body in news:
            for subscriber in tuple(self._subscribers[topic]):
                try:
                    subscriber(body)
                except Exception:
                    self._log.failure("a listener to the news failed")
