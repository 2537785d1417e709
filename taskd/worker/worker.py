"""One worker, wired together, from start to drained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twisted.internet.defer import maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from taskd.events.publisher import Publisher
from taskd.model.errors import Unavailable
from taskd.model.tasks import Task
from taskd.ports.broker import IBroker, IHints
from taskd.ports.store import IStore
from taskd.ports.workers import by_isolation
from taskd.usage_log import UsageLog
from taskd.worker.beats import Beats
from taskd.worker.begins import Begins
from taskd.worker.board import IBoard, IWatchdog, NoBoard, NoWatchdog
from taskd.worker.gate import Gate
from taskd.worker.held import HeldTasks
from taskd.worker.identity import Identity
from taskd.worker.looks import Looks
from taskd.worker.marks import Marks
from taskd.worker.means import Means
from taskd.worker.outcomes import Outcomes
from taskd.worker.registration import Registration
from taskd.worker.reports import Reports
from taskd.worker.returns import Returns
from taskd.worker.runner import Runner

STOP_SECONDS = 7.0
"""How long attempts that are stopped may take to end: child processes get TERM first, then KILL."""

CLOSE_SECONDS = 5.0
"""How much longer than the tasks' grace an orderly stop may take."""

LOG_BYTES = 1024 * 1024


class Worker:
    """Runs the tasks that servers assign to it: of all kinds that ``runner`` can run, from all ``queues``. A task whose
    outcome is being stored takes no slot.

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
        self._kinds = list(runner.kinds.values())
        self._slots = slots
        self._board = board = board or NoBoard()
        self._watchdog = watchdog or NoWatchdog()
        self._hints: IHints | None = None
        self._identity = identity = Identity(clock, new_name)
        publisher = Publisher(clock, store, broker, identity.name)
        self._held = held = HeldTasks(clock, board)
        gate = Gate(board, self._gate_raised, self._look_and_compare)
        self._registration = registration = Registration(
            store, publisher, identity, held, queues, self._kinds, slots, self._registered
        )
        self._marks = marks = Marks(clock, store, publisher, identity)
        self._usage = usage = UsageLog(clock, store)
        reports = Reports(
            clock, store, identity, log_bytes, marks.mark, publisher.publish_outputs, self._report_fenced, usage
        )
        self._returns = returns = Returns(clock, store, publisher, reports, held, identity)
        means = Means(clock)
        outcomes = Outcomes(clock, store, publisher, runner, reports, held, returns, marks, means, identity, usage)
        self._begins = begins = Begins(
            clock,
            store,
            publisher,
            held,
            outcomes,
            returns,
            identity,
            board,
            gate,
            runner.kinds,
            slots,
            self._has_room,
            self._look_and_compare,
        )
        self._looks = Looks(
            clock, store, held, begins, returns, runner, identity, gate, registration, self._can_be_hinted
        )
        self._beats = Beats(
            clock,
            store,
            runner,
            held,
            means,
            identity,
            registration,
            board,
            gate,
            self._looks.assert_held,
            self._beaten,
            self._fenced,
            self._recovered,
        )

    @property
    def name(self) -> str:
        """Its present name."""
        return self._identity.name

    @property
    def serves(self) -> str:
        """Which kinds, and how many at a time, in words for the log."""
        ways = by_isolation(self._kinds).items()
        return "; ".join(
            f"{self._slots[way]} at a time of {', '.join(kind.kind for kind in kinds)}" for way, kinds in ways
        )

    @property
    def consuming(self) -> bool:
        """Whether hints can arrive now."""
        return self._can_be_hinted()

    @property
    def busy(self) -> int:
        """How many tasks it holds or still runs."""
        return self._held.busy

    async def start(self) -> None:
        """Begin to take tasks, as soon as the store has registered the worker. Raises SettingsError when a handler
        cannot be loaded where it is to run."""
        self._watchdog.start()
        await self._runner.start()
        if self._held.draining:
            return
        self._beats.start()
        self._looks.start()
        self._begins.start()

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
        held, returns = self._held, self._returns
        held.draining = True
        # says that it drains; what a look still finds is given back
        self._beats.soon()
        await self._try(self._begins.give_back_unbegun)
        if held.busy:
            self._log.info("{count} tasks get {grace:g} seconds to end", count=held.busy, grace=grace)
            await self._try(held.until_idle, grace)
        await self._try(returns.give_back_all)
        await self._try(held.until_idle, STOP_SECONDS)
        await self._try(returns.send_all)
        await self._try(held.until_idle, CLOSE_SECONDS)
        if held.busy:
            self._log.warn("{count} tasks could not be settled: servers take them back", count=held.busy)
        # the beats go on until no handler runs any more
        await self._try(self._runner.stop)
        self._begins.stop()
        self._looks.stop()
        await self._try(self._stop_hints)
        await self._try(self._looks.give_back_rest)
        await self._usage.stop()
        self._beats.stop()
        if await self._registration.end():
            self._board.stopping()
        await self._try(self._watchdog.stop)

    def hurry(self) -> None:
        """Wait no longer for what :meth:`drain` is waiting for."""
        self._held.hurry()

    async def _try(self, step: Callable[..., Any], *args: Any) -> None:
        try:
            await maybeDeferred(step, *args)
        except Unavailable as e:
            self._log.warn("a step of the stop failed: {step}: {why}", step=step.__qualname__, why=str(e))
        except Exception:
            self._log.failure("a step of the stop failed: {step}", step=step.__qualname__)

    # -- what the parts tell each other

    def _registered(self) -> None:
        with self._log.failuresHandled("the watchdog does not know the worker's name"):
            self._board.rename(self.name)
        self._stop_hints()
        self._hints = self._broker.receive_hints(self.name, self._looks.hinted, self._looks.lost)
        self._look_and_compare()

    def _stop_hints(self) -> None:
        hints, self._hints = self._hints, None
        if hints is not None:
            hints.stop()

    def _can_be_hinted(self) -> bool:
        return self._hints is not None and self._hints.ready

    def _has_room(self) -> None:
        self._looks.has_room()

    def _look_and_compare(self) -> None:
        self._looks.lost()

    def _gate_raised(self) -> None:
        """The reactor has stood still, and the watchdog has given back what had not begun, or is about to."""
        self._log.info("the worker was blocked: what it had not begun goes back")
        self._begins.give_back_unbegun()
        # it looks again when this beat is accepted
        self._beats.soon()

    def _report_fenced(self, task: Task) -> None:
        self._looks.report_fenced(task)

    def _beaten(self, in_step: bool, sent: float) -> None:
        self._begins.fill()
        self._looks.beaten(in_step, sent)

    def _recovered(self) -> None:
        self._marks.again(self._held.running())
        self._looks.lost()

    def _fenced(self) -> None:
        """Servers have counted this worker as dead and taken its tasks back: nothing that it did for them counts."""
        before = self.name
        self._registration.fenced()
        self._identity.rename()
        dropped = tuple(self._held.tasks.values())
        text = "{before} counts as dead, its tasks were taken back: {count} are dropped, the worker goes on as {name}"
        self._log.warn(text, before=before, name=self.name, count=len(dropped))
        for held in dropped:
            self._returns.drop(held)
