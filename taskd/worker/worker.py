"""One worker, wired together, from start to drained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twisted.internet.defer import maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from taskd.events.publisher import Publisher
from taskd.model.errors import Unavailable
from taskd.ports.broker import ORDERS, IBroker
from taskd.ports.store import IStore
from taskd.worker.beats import Beats
from taskd.worker.board import IBoard, IWatchdog, NoBoard, NoWatchdog
from taskd.worker.claims import Claims
from taskd.worker.held import HeldTasks
from taskd.worker.identity import Identity
from taskd.worker.intake import Intake
from taskd.worker.looks import Looks
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

    ``slots`` says for each of :data:`taskd.ports.handler.ISOLATIONS` how many tasks run at a time. ``new_name`` makes
    names that nobody has or had: the worker takes one at its start, and another one each time that it was fenced.
    ``log_bytes`` is how much of a task's log is kept. ``board`` is what it shares with its ``watchdog``.
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
        new_name: Callable[[], str],
        *,
        log_bytes: int = LOG_BYTES,
        board: IBoard | None = None,
        watchdog: IWatchdog | None = None,
    ) -> None:
        self._broker = broker
        self._runner = runner
        self._queues = queues
        self._kinds = list(runner.kinds.values())
        self._slots = slots
        self._board = board = board or NoBoard()
        self._watchdog = watchdog or NoWatchdog()
        self._taking = False
        self.identity = identity = Identity(new_name)
        publisher = Publisher(clock, store, broker, identity.name)
        self.held = held = HeldTasks(clock)
        self.registration = registration = Registration(
            store, publisher, identity, held, queues, self._kinds, slots, self._registered
        )
        reclaim = Reclaim(store, publisher, held, identity)
        reports = Reports(clock, store, identity, log_bytes, publisher.publish_outputs, self._report_fenced)
        self.outcomes = Outcomes(clock, store, publisher, runner, reports, held, reclaim, identity)
        self.looks = looks = Looks(clock, store, held, self.outcomes, reclaim, identity, registration)
        self.beats = Beats(clock, store, runner, identity, registration, board, self._fenced, looks.soon)
        self.claims = Claims(
            clock, store, publisher, held, self.outcomes, slots, identity, registration, self.beats.soon
        )
        self.intake = Intake(clock, broker, held, self.claims)

    @property
    def name(self) -> str:
        """Its present name."""
        return self.identity.name

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
        """Begin to take tasks, as soon as the store has registered the worker. Raises SettingsError when a handler
        cannot be loaded where it is to run."""
        self._watchdog.start()
        await self._runner.start()
        if self.held.draining:
            return
        self._broker.subscribe(self.looks.cancel_ordered, self.looks.soon, ORDERS)
        self.beats.start()
        self.looks.start()

    def watch(self) -> None:
        """Start the watchdog. :meth:`start` does so too; earlier is better, because it takes a tenth of a second."""
        self._watchdog.start()

    def end_watch(self) -> None:
        """End the watchdog of a worker that has not been started."""
        self._board.stopping()
        self._watchdog.stop()

    async def drain(self, grace: float) -> None:
        """Take nothing more, give running tasks ``grace`` seconds, and give the rest back unspent. Never fails: what
        cannot be done is logged, and the next step follows."""
        held = self.held
        held.draining = True
        # says that it drains
        self.beats.soon()
        await self._try(self.intake.stop)
        await self._try(self.claims.give_back_waiting)
        if held.busy:
            self._log.info("{count} tasks get {grace:g} seconds to end", count=held.busy, grace=grace)
            await self._try(held.until_idle, grace)
        held.stopped = True
        await self._try(self.outcomes.stop_all)
        await self._try(held.until_idle, STOP_SECONDS)
        await self._try(self.outcomes.release_stopped)
        await self._try(held.until_idle, CLOSE_SECONDS)
        if held.busy:
            self._log.warn("{count} tasks could not be settled: servers take them back", count=held.busy)
        # the beats go on until no handler runs any more
        await self._try(self._runner.stop)
        self.looks.stop()
        await self._try(self.looks.give_back_rest)
        self.beats.stop()
        if await self.registration.end():
            self._board.stopping()
        await self._try(self._watchdog.stop)

    def hurry(self) -> None:
        """Wait no longer for what :meth:`drain` is waiting for."""
        self.held.hurry()

    async def _try(self, step: Callable[..., Any], *args: Any) -> None:
        try:
            await maybeDeferred(step, *args)
        except Unavailable as e:
            self._log.warn("a step of the stop failed: {step}: {why}", step=step.__qualname__, why=e.message)
        except Exception:
            self._log.failure("a step of the stop failed: {step}", step=step.__qualname__)

    def _registered(self) -> None:
        with self._log.failuresHandled("the watchdog does not know the worker's name"):
            self._board.rename(self.name)
        if not self._taking and not self.held.draining:
            self._taking = True
            self.intake.start(self._queues, self._kinds)

    def _report_fenced(self, task: Any) -> None:
        self.looks.report_fenced(task)

    def _fenced(self) -> None:
        """Servers have counted this worker as dead and taken its tasks back: nothing that it did for them counts."""
        before = self.name
        self.registration.fenced()
        self.identity.rename()
        dropped = tuple(self.held.running.values())
        text = "{before} counts as dead, its tasks were taken back: {count} attempts stop, the worker goes on as {name}"
        self._log.warn(text, before=before, name=self.name, count=len(dropped))
        for held in dropped:
            self.outcomes.drop(held)
