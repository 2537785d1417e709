"""The broker of the embedded server: calls in this process.

The clock delivers everything in a later turn, never inside the call that caused it, as a network does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from taskd.ports.broker import IBroker, IHints


@implementer(IHints)
class MemoryHints:
    """The hints for one worker. ``orders`` is None while no hint waits, else whether one that waits has orders."""

    def __init__(
        self, broker: MemoryBroker, worker: str, on_hint: Callable[[bool], None], on_lost: Callable[[], None]
    ) -> None:
        self._broker = broker
        self._stopped = False
        self.worker = worker
        self.on_hint = on_hint
        self.on_lost = on_lost
        self.orders: bool | None = None

    @property
    def ready(self) -> bool:
        """True while hints can arrive."""
        return self._broker.ready and not self._stopped

    def stop(self) -> None:
        self._stopped = True
        self._broker.forget(self)


@implementer(IBroker)
class MemoryBroker:
    """IBroker in this process."""

    _log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        self.ready = False
        self._clock = clock
        self._hints: list[MemoryHints] = []
        self._subscribers: list[Callable[[bytes], None]] = []
        self._events: list[bytes] = []
        self._turn: IDelayedCall | None = None

    @property
    def consuming(self) -> bool:
        """True while messages can arrive."""
        return self.ready

    async def start(self) -> None:
        if not self.ready:
            self.ready = True
            self._tell_lost()

    async def stop(self) -> None:
        if not self.ready:
            return
        self.ready = False
        self._events.clear()
        for hints in self._hints:
            hints.orders = None
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        self._tell_lost()

    def hint(self, workers: Iterable[str], orders: bool = False) -> None:
        if not self.ready:
            return
        wanted = set(workers)
        for hints in self._hints:
            if hints.worker in wanted:
                hints.orders = bool(hints.orders) or orders
                self._wake()

    def receive_hints(self, worker: str, on_hint: Callable[[bool], None], on_lost: Callable[[], None]) -> MemoryHints:
        hints = MemoryHints(self, worker, on_hint, on_lost)
        self._hints.append(hints)
        return hints

    def announce(self, batch: bytes) -> None:
        if self.ready and self._subscribers:
            self._events.append(batch)
            self._wake()

    def flush(self) -> None:
        """Nothing is sent."""

    def subscribe(self, on_batch: Callable[[bytes], None], on_gap: Callable[[], None]) -> None:
        self._subscribers.append(on_batch)

    def forget(self, hints: MemoryHints) -> None:
        """Send no more of these hints."""
        if hints in self._hints:
            self._hints.remove(hints)

    def _tell_lost(self) -> None:
        for hints in tuple(self._hints):
            with self._log.failuresHandled("a receiver of hints failed"):
                hints.on_lost()

    def _wake(self) -> None:
        if self._turn is None:
            self._turn = self._clock.callLater(0, self._deliver)

    def _deliver(self) -> None:
        self._turn = None
        events, self._events = self._events, []
        for body in events:
            for subscriber in tuple(self._subscribers):
                with self._log.failuresHandled("an event listener failed"):
                    subscriber(body)
        for hints in tuple(self._hints):
            orders, hints.orders = hints.orders, None
            # a hint that an earlier one of this turn has stopped is not sent any more
            if orders is not None and hints.ready:
                with self._log.failuresHandled("a receiver of hints failed"):
                    hints.on_hint(orders)
