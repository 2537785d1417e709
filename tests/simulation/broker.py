"""The broker that all processes share."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from taskd.ports.broker import Delivery

if TYPE_CHECKING:
    from tests.simulation.broker_link import BrokerLink, SimConsumer
    from tests.simulation.world import World


class Message(NamedTuple):
    """A message in a queue."""

    task_id: int
    dispatch: int
    redelivered: bool


class Queue:
    """Messages in order, delivered round-robin to the consumers."""

    def __init__(self, world: World, name: str) -> None:
        self._world = world
        self._stream = world.stream("queue", name)
        self._soon = False
        self._turn = 0
        self.messages: deque[Message] = deque()
        self.consumers: list[SimConsumer] = []

    def enqueue(self, message: Message) -> None:
        """Add a message at the end or, if messages are reordered, at a random place."""
        rates = self._world.rates
        if rates and self.messages and self._stream.random() < rates.reordered:
            self.messages.insert(self._stream.randrange(len(self.messages)), message)
        else:
            self.messages.append(message)
        self.deliver_soon()

    def requeue(self, messages: Sequence[Message]) -> None:
        """Return delivered messages to the front."""
        self.messages.extendleft([m._replace(redelivered=True) for m in reversed(messages)])
        self.deliver_soon()

    def deliver_soon(self) -> None:
        """Schedule a delivery if there are messages."""
        if self.messages and not self._soon:
            self._soon = True
            self._world.clock.call(None, self._stream.expovariate(1 / self._world.plan.broker_seconds), self._deliver)

    def _deliver(self) -> None:
        self._soon = False
        batches: dict[SimConsumer, list[Delivery]] = {}
        while self.messages and (able := [c for c in self.consumers if c.room > 0]):
            self._turn += 1
            consumer = able[self._turn % len(able)]
            batches.setdefault(consumer, []).append(consumer.take(self.messages.popleft()))
        for consumer, deliveries in batches.items():
            consumer.send(deliveries)


class SimBroker:
    """All queues and links. While the broker is down, no link is up."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.up = True
        self.queues: dict[str, Queue] = {}
        self.links: list[BrokerLink] = []

    def queue(self, name: str) -> Queue:
        """A queue, which is declared on first use."""
        if name not in self.queues:
            self.queues[name] = Queue(self._world, name)
        return self.queues[name]

    def stop(self) -> None:
        """Stop the broker. Messages survive, and unacked deliveries return to their queues."""
        self.up = False
        for link in self.links:
            link.lose()

    def start(self, lost_messages: bool) -> None:
        """Start the broker again, with its messages or without."""
        self.up = True
        if lost_messages:
            self.purge()

    def purge(self) -> None:
        """Remove all ready messages."""
        for queue in self.queues.values():
            queue.messages.clear()

    def remaining(self) -> list[str]:
        """A line for each message that is ready or unacked."""
        found = [f"{name}: {m} is ready" for name, queue in self.queues.items() for m in queue.messages]
        for queue in self.queues.values():
            for consumer in queue.consumers:
                found += [f"{consumer.name} has not acked {m}" for m in consumer.unacked.values()]
        return found
