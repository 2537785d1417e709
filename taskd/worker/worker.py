"""One worker, wired together, from start to drained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from taskd.events.publisher import Publisher
from taskd.ports.broker import ORDERS, IBroker
from taskd.ports.store import IStore
from taskd.ports.workers import WorkerInfo
from taskd.worker.claims import Claims
from taskd.worker.held import HeldTasks
from taskd.worker.intake import Intake
from taskd.worker.leases import Leases
from taskd.worker.outcomes import Outcomes
from taskd.worker.reclaim import Reclaim
from taskd.worker.registration import Registration
from taskd.worker.reports import Reports
from taskd.worker.runner import Runner

STOP_SECONDS = 7.0
"""How long attempts that are stopped may take to end: child processes get TERM first, then KILL."""

CLOSE_SECONDS = 5.0
"""How much longer than the tasks' grace an orderly stop may take."""

LOG_BYTES = 1024 * 1024


class Worker:
    """Runs tasks of all kinds that ``runner`` can run, from all ``queues``. A task whose outcome is being stored takes
    no slot.

    ``slots`` says for each of :data:`taskd.ports.handler.ISOLATIONS` how many tasks run at a time. ``lease`` is in
    seconds. ``name`` is unique to this life of the process: it fences. ``log_bytes`` is how much of a task's log is
    kept.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        store: IStore,
        broker: IBroker,
        runner: Runner,
        queues: Sequence[str],
        slots: Mapping[str, int],
        lease: float,
        name: str,
        log_bytes: int = LOG_BYTES,
    ) -> None:
        self._broker = broker
        self._runner = runner
        self._queues = queues
        self._kinds = list(runner.kinds.values())
        self._slots = slots
        publisher = Publisher(clock, broker, name)
        info = WorkerInfo(name, queues, self._kinds, sum(slots.values()))
        self.registration = Registration(store, publisher, info)
        self.held = held = HeldTasks(clock)
        reclaim = Reclaim(store, publisher, held, name, lease)
        self.leases = Leases(clock, store, held, reclaim, self.registration, name, lease)
        reports = Reports(clock, store, name, log_bytes, publisher.publish_outputs, self.leases.report_fenced)
        self.outcomes = Outcomes(clock, store, publisher, runner, reports, held, reclaim, name)
        self.claims = Claims(clock, store, publisher, held, self.outcomes, slots, name, lease)
        self.intake = Intake(clock, broker, held, self.claims)

    @property
    def serves(self) -> str:
        """Which kinds, and how many at a time, in words for the log."""
        by_isolation: dict[str, list[str]] = {}
        for info in self._kinds:
            by_isolation.setdefault(info.isolation, []).append(info.kind)
        parts = [f"{self._slots[way]} at a time of {', '.join(kinds)}" for way, kinds in by_isolation.items()]
        return "; ".join(parts)

    @property
    def consuming(self) -> bool:
        """Whether every queue can deliver now."""
        return self.intake.consuming

    @property
    def busy(self) -> int:
        """How many tasks it claims or runs."""
        return self.held.busy

    async def start(self) -> None:
        """Begin to take tasks. Raises SettingsError when a handler cannot be loaded where it is to run."""
        await self._runner.start()
        if self.held.draining:
            return
        self._broker.subscribe(self.leases.cancel_ordered, _no_gap, ORDERS)
        self.intake.start(self._queues, self._kinds)
        await self.registration.renew()
        self.leases.start()

    async def drain(self, grace: float) -> None:
        """Take nothing more, give running tasks ``grace`` seconds, and give the rest back unspent. Never fails."""
        held = self.held
        held.draining = True
        await self.intake.stop()
        await self.registration.end()
        if held.busy:
            self._log.info("{count} tasks get {grace:g} seconds to end", count=held.busy, grace=grace)
            await held.until_idle(grace)
        held.stopped = True
        self.outcomes.stop_all()
        await held.until_idle(STOP_SECONDS)
        await self.outcomes.release_stopped()
        await held.until_idle(CLOSE_SECONDS)
        if held.busy:
            self._log.warn("{count} tasks could not be settled: their leases will expire", count=held.busy)
        self.leases.stop()
        await self._runner.stop()

    def hurry(self) -> None:
        """Wait no longer for what :meth:`drain` is waiting for."""
        self.held.hurry()


def _no_gap() -> None:
    """A lost cancel order costs the time until the next renewal."""
