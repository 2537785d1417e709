"""The unreliable link of each process to the shared broker."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace
from zope.interface import implementer

from taskd.events.records import EventBatch, decode_batch
from taskd.ports.broker import IBroker, IHints

if TYPE_CHECKING:
    from tests.simulation.processes import Process
    from tests.simulation.world import World

LATE_HINT = 120.0
"""Seconds that a hint may take."""

FOREIGN = 0.03
"""How often an event batch is followed by one of another installation, as if an operator had bound their exchanges
together. Users, tasks and versions have the same numbers there."""

FOREIGN_TEXT = "another installation's"


@implementer(IHints)
class SimHints:
    """The hints for one worker. After its queue was lost, it opens another one a little later."""

    def __init__(
        self, link: BrokerLink, worker: str, on_hint: Callable[[bool], None], on_lost: Callable[[], None]
    ) -> None:
        self.ready = False
        self.worker = worker
        self._link = link
        self._on_hint = on_hint
        self._on_lost = on_lost
        self._stream = link.stream(f"hints for {worker}")
        self._open = False
        self._stopped = False

    def stop(self) -> None:
        self._stopped = True
        self.ready = self._open = False

    def receive(self, orders: bool) -> None:
        """The broker has a hint for it: it may be lost, come twice, or come very late."""
        rates = self._link.rates
        if not self._open or (rates and self._stream.random() < rates.dropped):
            return
        for _ in range(2 if rates and self._stream.random() < rates.duplicated else 1):
            late = rates and self._stream.random() < rates.reordered
            most = self._stream.choice((1.0, 5.0, LATE_HINT))
            delay = self._stream.uniform(0, most) if late else self._link.delay(self._stream)
            self._link.later(delay, self._arrived, orders)

    def lose(self) -> None:
        """Its queue is gone, and the process notices it a little later."""
        if self._open:
            self._open = False
            self._link.later(self._stream.uniform(0, 0.5), self._notice_loss)

    def open(self) -> None:
        """Open a new queue."""
        if self._link.up and not self._open and not self._stopped:
            self._open = self.ready = True
            self._on_lost()

    def _arrived(self, orders: bool) -> None:
        if not self._stopped:
            self._on_hint(orders)

    def _notice_loss(self) -> None:
        if self._open or self._stopped:
            return
        self.ready = False
        self._on_lost()
        if self._link.up:
            self._link.later(self._stream.uniform(0, 1.0), self.open)


@implementer(IBroker)
class BrokerLink:
    """The IBroker of one process."""

    def __init__(self, world: World, process: Process) -> None:
        self.ready = False
        self.up = False
        self.receivers: list[SimHints] = []
        self._world = world
        self._broker = world.broker
        self._process = process
        self._plan = world.plan
        self._listeners: list[tuple[Callable[[bytes], None], Callable[[], None]]] = []
        self._life = 0
        self._stopped = False
        self._cut = False
        self._lost_events = False
        self._connecting = self.stream("connecting")
        self._event_stream = self.stream("events")
        self._hint_stream = self.stream("hints")
        self._foreign_stream = self.stream("foreign")
        self._broker.links.append(self)

    @property
    def rates(self) -> Any:
        """The present rates of faults."""
        return self._world.rates

    def stream(self, what: str) -> Any:
        """The random numbers of this process for one purpose."""
        return self._world.stream(self._process.name, what)

    def later(self, delay: float, what: Callable[..., object], *args: Any) -> None:
        """Call a function in the process, some time later."""
        self._process.clock.callLater(delay, what, *args)

    def delay(self, stream: Any) -> float:
        """Random seconds that a message takes on the network."""
        return float(stream.expovariate(1 / self._plan.broker_seconds))

    @property
    def consuming(self) -> bool:
        """Whether it receives what others send."""
        return self.ready and all(receiver.ready for receiver in self.receivers)

    # -- faults

    def lose(self) -> None:
        """Lose the connection."""
        if self.up:
            self.up = False
            self._life += 1
            for receiver in self.receivers:
                receiver.lose()
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
        self._broker.links.remove(self)
        self._check_untold()

    def _check_untold(self) -> None:
        """A process that has ended tells nobody that event batches of it were lost, for example while it was frozen."""
        if self._lost_events and self._stopped:
            self._world.late_effect()

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
        for receiver in self.receivers:
            receiver.open()
        for _, on_gap in self._listeners:
            on_gap()
        if self._lost_events:
            # tell all subscribers that event batches were lost meanwhile
            self._lost_events = False
            self.announce(b"")

    # -- IBroker

    async def start(self) -> None:
        self.later(self.delay(self._connecting), self._connect)

    async def stop(self) -> None:
        self._stopped = True
        self.ready = False
        self.lose()
        self._check_untold()

    def hint(self, workers: Iterable[str], orders: bool = False) -> None:
        if self.ready:
            there = self.delay(self._hint_stream)
            self._world.clock.call(None, there, self._deliver_hints, list(workers), orders, self._life)

    def _deliver_hints(self, workers: list[str], orders: bool, life: int) -> None:
        if life == self._life and self.up and not self._broker.eats:
            for link in self._broker.links:
                for receiver in link.receivers:
                    if receiver.worker in workers:
                        receiver.receive(orders)

    def receive_hints(self, worker: str, on_hint: Callable[[bool], None], on_lost: Callable[[], None]) -> SimHints:
        receiver = SimHints(self, worker, on_hint, on_lost)
        self.receivers = [each for each in self.receivers if not each._stopped]
        self.receivers.append(receiver)
        if self.up:
            self.later(self.delay(self._connecting), receiver.open)
        return receiver

    def announce(self, batch: bytes) -> None:
        if self.ready:
            there = self.delay(self._event_stream)
            self._world.clock.call(None, there, self._fan_out, batch, self._life)
        else:
            self._lost_events = True

    def flush(self) -> None:
        pass

    def _fan_out(self, body: bytes, life: int) -> None:
        if life == self._life and self.up:
            for link in self._broker.links:
                if link.up:
                    link._receive(body)
        else:
            self._lost_events = True
            self._check_untold()

    def _receive(self, body: bytes) -> None:
        stream, rates = self._event_stream, self._world.rates
        for on_event, on_gap in self._listeners:
            if not body or self._broker.eats or (rates and stream.random() < rates.event_gap):
                self.later(stream.uniform(0, 2.0), on_gap)
                continue
            foreign = self._foreign_stream
            if rates and foreign.random() < FOREIGN:
                self.later(foreign.uniform(0, 1.0), on_event, _of_another_installation(body))
            copies = 2 if rates and stream.random() < rates.event_duplicated else 1
            for _ in range(copies):
                slow = rates and stream.random() < rates.reordered
                self.later(stream.uniform(0, 2.0) if slow else self.delay(stream), on_event, body)

    def subscribe(self, on_batch: Callable[[bytes], None], on_gap: Callable[[], None]) -> None:
        self._listeners.append((on_batch, on_gap))


def _of_another_installation(body: bytes) -> bytes:
    """The same changes, of tasks of another installation, which are a little further."""
    batch, changes = decode_batch(body), []
    for change in batch.changes:
        version = change.version + 1
        view = {**msgspec.json.decode(change.view), "task": FOREIGN_TEXT, "version": version}
        changes.append(replace(change, version=version, view=msgspec.Raw(msgspec.json.encode(view))))
    return msgspec.json.encode(EventBatch("another", "a process there", changes, batch.outputs, batch.workers))
