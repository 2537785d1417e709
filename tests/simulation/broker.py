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
    """A message as a queue has it."""

    task_id: int
    dispatch: int
    redelivered: bool


class Queue:
    """Messages in order, and the consumers that take turns."""

    def __init__(self, world: World, name: str) -> None:
        self._world = world
        self._stream = world.stream("queue", name)
        self._soon = False
        self._turn = 0
        self.messages: deque[Message] = deque()
        self.consumers: list[SimConsumer] = []

    def put(self, message: Message) -> None:
        """A message arrives at the end, or somewhere else."""
        rates = self._world.rates
        if rates and self.messages and self._stream.random() < rates.reordered:
            self.messages.insert(self._stream.randrange(len(self.messages)), message)
        else:
            self.messages.append(message)
        self.kick()

    def put_back(self, messages: Sequence[Message]) -> None:
        """Messages that were delivered return to the front."""
        self.messages.extendleft([m._replace(redelivered=True) for m in reversed(messages)])
        self.kick()

    def kick(self) -> None:
        """There may be something to deliver."""
        if self.messages and not self._soon:
            self._soon = True
            self._world.clock.call(None, self._stream.expovariate(1 / self._world.plan.broker_seconds), self._deliver)

    def _deliver(self) -> None:
        self._soon = False
        shares: dict[SimConsumer, list[Delivery]] = {}
        while self.messages and (able := [c for c in self.consumers if c.room > 0]):
            self._turn += 1
            consumer = able[self._turn % len(able)]
            shares.setdefault(consumer, []).append(consumer.hand_out(self.messages.popleft()))
        for consumer, deliveries in shares.items():
            consumer.send(deliveries)


class SimBroker:
    """All queues and links. While it is down no link is up."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.up = True
        self.queues: dict[str, Queue] = {}
        self.links: list[BrokerLink] = []

    def queue(self, name: str) -> Queue:
        """A queue, declared when it is first named."""
        if name not in self.queues:
            self.queues[name] = Queue(self._world, name)
        return self.queues[name]

    def stop(self) -> None:
        """It dies; what is durable survives, unacked deliveries return to their queues."""
        self.up = False
        for link in self.links:
            link.lose()

    def start(self, forgetful: bool) -> None:
        """It is there again, with its messages or, after a crash, without."""
        self.up = True
        if forgetful:
            self.purge()

    def purge(self) -> None:
        """All ready messages are gone."""
        for queue in self.queues.values():
            queue.messages.clear()

    def unsettled(self) -> list[str]:
        """What is in the queues or unacked."""
        found = [f"{name}: {m} is ready" for name, queue in self.queues.items() for m in queue.messages]
        for queue in self.queues.values():
            for consumer in queue.consumers:
                found += [f"{consumer.name} has not acked {m}" for m in consumer.unacked.values()]
        return found
