"""The unreliable link of each process to the shared broker."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from zope.interface import implementer

from taskd.model.errors import BrokerUnavailable
from taskd.ports.broker import CHANGES, ORDERS, Delivery, IBroker, IConsumer
from taskd.ports.scheduling import Dispatch
from tests.simulation.broker import Message, Queue

if TYPE_CHECKING:
    from tests.simulation.processes import Process
    from tests.simulation.world import World


@implementer(IConsumer)
class SimConsumer:
    """A consumer of a process.

    ``_channel`` counts the channels that the broker had for it; ``_known`` is the one that the process knows. After a
    channel was lost, the process works for a moment with deliveries that are void.
    """

    def __init__(
        self,
        link: BrokerLink,
        queue: Queue,
        name: str,
        prefetch: int,
        on_deliveries: Callable[[Sequence[Delivery]], None],
        on_lost: Callable[[], None],
    ) -> None:
        self.name = name
        self.ready = False
        self.unacked: dict[int, Message] = {}
        self._link = link
        self._queue = queue
        self._prefetch = prefetch
        self._on_deliveries = on_deliveries
        self._on_lost = on_lost
        self._stream = link.stream(f"consumer {name}")
        self._open = False
        self._stopped = False
        self._stopping: Deferred[None] | None = None
        self._channel = 0
        self._known = 0
        self._tags = 0

    # -- the broker's side

    @property
    def room(self) -> int:
        """How many more deliveries it may hold."""
        return self._prefetch - len(self.unacked) if self._open and not self._stopped else 0

    def take(self, message: Message) -> Delivery:
        """Take a message from the queue: it is unacked from now on."""
        self._tags += 1
        self.unacked[self._tags] = message
        return Delivery(message.task_id, message.dispatch, message.redelivered, (self._channel, self._tags))

    def send(self, deliveries: Sequence[Delivery]) -> None:
        """Send deliveries to the process."""
        self._link.later(self._link.delay(self._stream), self._arrived, self._channel, deliveries)

    def lose(self) -> None:
        """Lose the channel. Its deliveries return to the queue, and the process notices it a little later."""
        if not self._open:
            return
        self._open = False
        self._channel += 1
        back = list(self.unacked.values())
        self.unacked.clear()
        self._queue.requeue(back)
        self._link.later(self._stream.uniform(0, 0.5), self._notice_loss, self._channel)

    def open(self) -> None:
        """Open a new channel."""
        if self._link.up and not self._open and self._stopping is None:
            self._channel_lost(self._channel)
            self._open = True
            self._channel += 1
            self._known = self._channel
            self.ready = True
            self._queue.deliver_soon()

    def _resolve(self, channel: int, deliveries: Sequence[Delivery], back: bool) -> None:
        if channel != self._channel:
            return  # these deliveries are void
        found = [d for d in deliveries if d.tag[1] in self.unacked]
        messages = [self.unacked.pop(d.tag[1]) for d in found]
        if back:
            self._queue.requeue(messages)
            return
        self._queue.deliver_soon()
        for delivery in found:
            same = (delivery.task_id, delivery.dispatch)
            others = any(same == m[:2] for m in self.unacked.values())
            self._link.acked(delivery, others)

    # -- the process's side

    def _arrived(self, channel: int, deliveries: Sequence[Delivery]) -> None:
        if channel == self._known:
            self._on_deliveries(deliveries)

    def _notice_loss(self, channel: int) -> None:
        self._channel_lost(channel)
        if self._link.up and not self._open:
            self._link.later(self._stream.uniform(0, 1.0), self.open)

    def _channel_lost(self, channel: int) -> None:
        if self._known < channel:
            self._known = channel
            self.ready = False
            if self._stopping is not None and not self._stopping.called:
                self._stopping.callback(None)
            self._on_lost()

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        self._send_back(deliveries, False)

    def requeue(self, deliveries: Sequence[Delivery]) -> None:
        self._send_back(deliveries, True)

    def _send_back(self, deliveries: Sequence[Delivery], back: bool) -> None:
        for channel in sorted({d.tag[0] for d in deliveries}):
            those = [d for d in deliveries if d.tag[0] == channel]
            # in the order in which they were sent; the channel may be lost when they arrive
            self._link.send_to_broker(self._stream, self._resolve, channel, those, back)

    def stop(self) -> Awaitable[None]:
        self.ready = False
        done = self._stopping = Deferred()
        if self._open:
            self._link.send_to_broker(self._stream, self._stop)
        else:
            done.callback(None)
        return done

    def _stop(self) -> None:
        self._stopped = True
        self._link.later(self._link.delay(self._stream), self._has_stopped)

    def _has_stopped(self) -> None:
        if self._stopping is not None and not self._stopping.called:
            self._stopping.callback(None)


@implementer(IBroker)
class BrokerLink:
    """The IBroker of one process."""

    def __init__(self, world: World, process: Process) -> None:
        self.ready = False
        self.up = False
        self.consumers: list[SimConsumer] = []
        self._world = world
        self._broker = world.broker
        self._process = process
        self._plan = world.plan
        self._listeners: dict[str, list[tuple[Callable[[bytes], None], Callable[[], None]]]] = {}
        self._life = 0
        self._stopped = False
        self._cut = False
        self._lost_events = False
        self._sent = 0.0
        self._connecting = self.stream("connecting")
        self._publishing = self.stream("publishing")
        self._event_stream = self.stream("events")
        self._depth = self.stream("depth")
        self._broker.links.append(self)

    def stream(self, what: str) -> Any:
        """The random numbers of this process for one purpose."""
        return self._world.stream(self._process.name, what)

    def later(self, delay: float, what: Callable[..., object], *args: Any) -> None:
        """Call a function in the process, some time later."""
        self._process.clock.callLater(delay, what, *args)

    def delay(self, stream: Any) -> float:
        """Random seconds that a message takes on the network."""
        return float(stream.expovariate(1 / self._plan.broker_seconds))

    def send_to_broker(self, stream: Any, what: Callable[..., object], *args: Any) -> None:
        """Call a function at the broker, some time later and in order, unless the connection is lost before."""
        life = self._life
        self._sent = max(self._world.clock.seconds() + self.delay(stream), self._sent)

        def arrive() -> None:
            if self._life == life:
                what(*args)

        self._world.clock.call(None, self._sent - self._world.clock.seconds(), arrive)

    def acked(self, delivery: Delivery, others: bool) -> None:
        """A delivery of a consumer was acked."""
        self._world.referee.acked(self._process.name, delivery, others)

    @property
    def consuming(self) -> bool:
        """Whether it receives what others send."""
        return self.ready and all(consumer.ready for consumer in self.consumers)

    # -- faults

    def lose(self) -> None:
        """Lose the connection."""
        if self.up:
            self.up = False
            self._life += 1
            for consumer in self.consumers:
                consumer.lose()
            self.later(self._connecting.uniform(0, 0.5), self._notice_loss)

    def cut(self, cut: bool) -> None:
        """Cut the network between this process and the broker, or mend it."""
        self._cut = cut
        if cut:
            self.lose()

    def process_died(self) -> None:
        """The broker notices that the process has ended."""
        self._stopped = True
        self.lose()
        for consumer in self.consumers:
            consumer._queue.consumers.remove(consumer)
        self._broker.links.remove(self)

    def _notice_loss(self) -> None:
        self.ready = False
        self._connect_later()

    def _connect_later(self) -> None:
        self.later(self._connecting.uniform(0.05, 1.0), self._connect)

    def _connect(self) -> None:
        if self._stopped or self.up:
            return
        if not self._broker.up or self._cut:
            self._connect_later()
            return
        self.up = self.ready = True
        for consumer in self.consumers:
            consumer.open()
        for _, on_gap in [each for those in self._listeners.values() for each in those]:
            on_gap()
        if self._lost_events:
            # tell all subscribers that event batches were lost meanwhile
            self._lost_events = False
            for topic in (CHANGES, ORDERS):
                self.announce(b"", topic)

    # -- IBroker

    async def start(self) -> None:
        self.later(self.delay(self._connecting), self._connect)

    async def stop(self) -> None:
        self._stopped = True
        self.ready = False
        self.lose()

    def publish(self, queue: str, messages: Sequence[Dispatch]) -> Awaitable[None]:
        done: Deferred[None] = Deferred()
        if not self.ready:
            done.errback(BrokerUnavailable("the broker is away"))
        elif not messages:
            done.callback(None)
        else:
            there = self.delay(self._publishing)
            self._world.clock.call(None, there, self._arrive, done, queue, list(messages), self._life)
        return done

    def _arrive(self, done: Deferred[None], queue: str, messages: Sequence[Dispatch], life: int) -> None:
        stream, rates = self._publishing, self._world.rates
        kind = stream.random()
        if life != self._life or self._process.dead or not self.up:
            # the publisher cannot know whether the messages arrived before the connection was lost
            if stream.random() < 0.5 and self._broker.up:
                self._enqueue(queue, messages)
            self.later(stream.uniform(0, 1.0), self._not_confirmed, done)
        elif rates and kind < rates.lost_confirm:
            self.later(stream.uniform(0, 15.0), self._not_confirmed, done)
        elif rates and kind < rates.lost_confirm + rates.unconfirmed:
            self._enqueue(queue, messages)
            self.later(stream.uniform(0, 2.0), self._not_confirmed, done)
        else:
            self._enqueue(queue, messages)
            late = rates and stream.random() < rates.late_confirm
            delay = stream.uniform(0, 12.0) if late else self.delay(stream)
            self.later(delay, self._confirm, done, messages, self._life)

    def _enqueue(self, queue: str, messages: Sequence[Dispatch]) -> None:
        stream, rates = self._publishing, self._world.rates
        for message in messages:
            copies = 1
            if rates and stream.random() < rates.dropped:
                copies = 0
            elif rates and stream.random() < rates.duplicated:
                copies = 2
            for _ in range(copies):
                late = rates and stream.random() < rates.reordered / 2
                delay = stream.uniform(0, stream.choice((0.1, 5.0, 15.0))) if late else 0.0
                self._world.clock.call(
                    None, delay, self._broker.queue(queue).enqueue, Message(message.task_id, message.dispatch, False)
                )

    def _confirm(self, done: Deferred[None], messages: Sequence[Dispatch], life: int) -> None:
        if life != self._life:
            self._not_confirmed(done)
            return
        self._world.referee.delivered.update((m.task_id, m.dispatch) for m in messages)
        done.callback(None)

    def _not_confirmed(self, done: Deferred[None]) -> None:
        done.errback(BrokerUnavailable("a message was not confirmed"))

    def consume(
        self,
        queue: str,
        prefetch: int,
        on_deliveries: Callable[[Sequence[Delivery]], None],
        on_lost: Callable[[], None],
    ) -> SimConsumer:
        found = self._broker.queue(queue)
        name = f"{self._process.name} {queue}"
        consumer = SimConsumer(self, found, name, prefetch, on_deliveries, on_lost)
        self.consumers.append(consumer)
        found.consumers.append(consumer)
        if self.up:
            consumer.open()
        return consumer

    def depth(self, queue: str) -> Awaitable[int]:
        done: Deferred[int] = Deferred()

        def answer() -> None:
            if self.ready and self.up:
                done.callback(len(self._broker.queue(queue).messages))
            else:
                done.errback(BrokerUnavailable("the broker is away"))

        self.later(self.delay(self._depth), answer)
        return done

    def announce(self, body: bytes, topic: str = CHANGES) -> None:
        if self.ready:
            there = self.delay(self._event_stream)
            self._world.clock.call(None, there, self._fan_out, body, topic, self._life)
        else:
            self._lost_events = True

    def _fan_out(self, body: bytes, topic: str, life: int) -> None:
        if life == self._life and self.up:
            for link in self._broker.links:
                if link.up:
                    link._receive(body, topic)
        else:
            self._lost_events = True

    def _receive(self, body: bytes, topic: str) -> None:
        stream, rates = self._event_stream, self._world.rates
        for on_event, on_gap in self._listeners.get(topic, ()):
            if not body or (rates and stream.random() < rates.event_gap):
                self.later(stream.uniform(0, 2.0), on_gap)
                continue
            copies = 2 if rates and stream.random() < rates.event_duplicated else 1
            for _ in range(copies):
                slow = rates and stream.random() < rates.reordered
                self.later(stream.uniform(0, 2.0) if slow else self.delay(stream), on_event, body)

    def subscribe(self, on_event: Callable[[bytes], None], on_gap: Callable[[], None], topic: str = CHANGES) -> None:
        self._listeners.setdefault(topic, []).append((on_event, on_gap))
