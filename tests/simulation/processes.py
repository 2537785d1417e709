"""Servers and workers as processes that start, drain, freeze and die."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from zope.interface import implementer

from taskd.api.accounts import Accounts
from taskd.api.login_guard import open_guard
from taskd.config import ConnectionLimits
from taskd.model.backoff import Backoff
from taskd.model.errors import Unavailable
from taskd.model.limits import DEFAULT_ATTEMPTS
from taskd.model.tasks import DEFAULT_KIND, Task
from taskd.ports.handler import ITaskContext, ITaskHandler
from taskd.ports.workers import WorkerPoll
from taskd.server.task_server import TaskServer
from taskd.worker.attempt import Attempt
from taskd.worker.runner import Runner
from taskd.worker.worker import Worker
from tests.simulation.broker_link import BrokerLink
from tests.simulation.clock import OwnClock, Owner
from tests.simulation.holders import Series
from tests.simulation.referee import NO_ERROR
from tests.simulation.store import StoreLink
from tests.simulation.watchdog import Board, Watchdog

if TYPE_CHECKING:
    from tests.simulation.network import Connection
    from tests.simulation.world import World

SESSION_SECONDS = 10**7
KINDS = (DEFAULT_KIND, "rare")
PATIENCE = 5.0
"""Seconds after which a working store has answered every call."""


class Process(Owner):
    """One run of a process, with its own links to the store and the broker."""

    def __init__(self, world: World, name: str) -> None:
        self.stream = world.stream(name)
        super().__init__(self.stream.uniform(-1e6, 1e6))
        self.name = name
        self.world = world
        self.clock: Any = OwnClock(world.clock, self)
        self.store = StoreLink(world, self)
        self.broker = BrokerLink(world, self)
        self.draining = False
        self.ended = False
        self.died = 0.0

    def start(self) -> None:
        """Start the process, as ``twistd`` does."""
        self.world.note(self.name, "starts")
        Deferred.fromCoroutine(self._start()).addErrback(self._broken)

    async def _start(self) -> None:
        try:
            await self.store.start()
        except Unavailable:
            return
        await self.broker.start()
        self.serve()

    def serve(self) -> None:
        """The store is available: start to work."""
        raise NotImplementedError

    def terminate(self) -> None:
        """SIGTERM: drain and end."""
        if not self.draining and not self.dead:
            self.draining = True
            self.world.note(self.name, "drains")
            Deferred.fromCoroutine(self._stop()).addErrback(self._broken)

    async def _stop(self) -> None:
        await self.drain()
        await self.broker.stop()
        await self.store.stop()
        self.world.note(self.name, "ends")
        self.ended = True
        self.end()

    async def drain(self) -> None:
        """Finish or release all work."""
        raise NotImplementedError

    def kill(self) -> None:
        """SIGKILL: end at once."""
        if not self.dead:
            self.world.note(self.name, "is killed")
            self.end()

    def end(self) -> None:
        """Run nothing more. Other processes notice it later."""
        self.dead = True
        self.died = self.world.clock.seconds()
        self.store.connection.closed = True
        self.world.process_ended(self)

    def cut(self, cut: bool) -> None:
        """Cut the network between the process and the database, or mend it."""
        self.store.cut(cut)

    def disconnect(self) -> None:
        """The database closes the connections of the process."""
        self.store.disconnect()

    def freeze(self) -> None:
        """SIGSTOP."""
        if not self.paused:
            self.world.note(self.name, "freezes")
            self.paused = True

    def thaw(self) -> None:
        """SIGCONT."""
        if self.paused:
            self.world.note(self.name, "thaws")
            self.paused = False
            self.world.clock.resume(self)

    def tasks(self) -> set[int]:
        """Tasks that it has, whether they have begun or not."""
        return set()

    def _broken(self, failure: Failure) -> None:
        self.world.referee.fail(NO_ERROR, f"{self.name}: {failure.getErrorMessage()}")


def _no_passwords(*_: Any) -> NoReturn:
    raise AssertionError("all clients log in with tokens")


class ServerProcess(Process):
    """A task server."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        plan = world.plan
        self.connections: list[Connection] = []
        world.holders.series[name] = self.series = Series(self, world.clock.seconds())
        self.server = TaskServer(
            self.clock,
            self.store,
            self.broker,
            Accounts(self.store, open_guard(self.clock, self.store, _no_passwords, 1), 4, SESSION_SECONDS),
            queues=plan.queues,
            limits=ConnectionLimits(allow_plaintext=True),
            lease=plan.lease,
            node=name,
        )
        self._tell_what_liveness_knows()

    def _tell_what_liveness_knows(self) -> None:
        """Not every answer of a poll counts: some polls ask only whether the database is the same."""
        world, series, liveness = self.world, self.series, self.server.scheduler.liveness
        look, count_anew = liveness._look, liveness._break

        def tell_and_look(poll: WorkerPoll, began: float, prompt: bool) -> None:
            world.holders.polled(series, poll)
            look(poll, began, prompt)

        def tell_and_count_anew(why: str) -> None:
            series.reset_at = world.clock.seconds()
            count_anew(why)

        liveness._look = tell_and_look  # type: ignore[method-assign]
        liveness._break = tell_and_count_anew  # type: ignore[method-assign]

    @property
    def accepting(self) -> bool:
        """Whether it accepts connections."""
        return not self.dead and not self.draining

    def build_protocol(self) -> Any:
        """The protocol for a new connection, or None if it is refused."""
        return self.server.lines.buildProtocol(None) if self.accepting else None

    def serve(self) -> None:
        if not self.draining:
            self.server.start()

    async def drain(self) -> None:
        await self.server.drain()

    def end(self) -> None:
        super().end()
        for connection in tuple(self.connections):
            connection.cut()


class WorkerProcess(Process):
    """A worker with its watchdog."""

    def __init__(self, world: World, name: str, slots: int) -> None:
        super().__init__(world, name)
        self.slots = slots
        self.board = Board(self)
        self.stalled = False
        """Whether it is blocked by a handler, and not stopped."""
        self.stalled_since = 0.0
        self.stubborn = 0
        """How many handlers go on although they were cancelled."""
        self.crashed = False
        """Whether a handler has crashed it, and left a dump."""
        self._names = 0
        self._serving = False
        handlers = [Handler(self, kind) for kind in KINDS]
        runner = self.runner = RecordingRunner(self, handlers)
        self.worker = Worker(
            self.clock,
            self.store,
            self.broker,
            runner,
            world.plan.queues,
            {"async": slots},
            self._new_name,
            log_bytes=2000,
            board=self.board,
        )
        self.watchdog = Watchdog(world, self)

    def _new_name(self) -> str:
        self._names += 1
        return f"{self.name}.{self._names}"

    def tasks(self) -> set[int]:
        return set(self.worker._held.tasks)

    @property
    def frozen(self) -> bool:
        """Whether it is stopped, so that nobody may beat for it. It thaws some time later, also after the faults."""
        return self.paused and not self.stalled

    @property
    def can_beat(self) -> bool:
        """Whether its beats or its watchdog's can reach the database."""
        return (not self.paused and self.store.reached) or self.watchdog.can_vouch

    def serve(self) -> None:
        if not self.draining:
            self._serving = True
            Deferred.fromCoroutine(self.worker.start()).addErrback(self._broken)
            self.watchdog.start()

    async def drain(self) -> None:
        if self._serving:
            # an assignment whose answer was lost may still be executed
            before = self.world.clock.seconds() - 2 * PATIENCE
            await self.worker.drain(self.stream.choice((0.0, 1.0, 5.0)))
            self.world.referee.drained(self.worker.name, self.store.disturbed < before)

    def end(self) -> None:
        super().end()
        self.watchdog.worker_ended()

    def crash(self, task: Task) -> None:
        """A handler crashes the process, and the fault handler dumps where it was."""
        self.board.entered = task.id, task.dispatch
        self.crashed = True
        self.kill()

    def cut(self, cut: bool) -> None:
        super().cut(cut)
        self.watchdog.cut(cut)

    def stall(self) -> None:
        """A handler blocks the reactor."""
        if not self.paused and (running := sorted(self.world.referee.running.get(self.name, ()))):
            self.board.entered = self.stream.choice(running)[:2]
            self.world.note(self.name, "is blocked by task", self.board.entered[0])
            self.paused = self.stalled = True
            self.stalled_since = self.world.clock.seconds()

    def end_stall(self, since: float) -> None:
        """The handler that blocks the reactor since then blocks it no more."""
        if self.stalled and self.stalled_since == since:
            self.thaw()

    def thaw(self) -> None:
        super().thaw()
        self.stalled = False
        self.board.entered = None

    def disconnect(self) -> None:
        super().disconnect()
        self.watchdog.disconnect()

    def revive_watchdog(self) -> None:
        """Another watchdog takes the place of one that was killed."""
        if not self.dead and self.watchdog.dead:
            self.watchdog = Watchdog(self.world, self)
            self.watchdog.start()


class RecordingRunner(Runner):
    """A runner that keeps the task that it begins, as a handler sees only a part of it, and tells who is stopped."""

    beginning: Task

    def __init__(self, process: WorkerProcess, handlers: Sequence[ITaskHandler]) -> None:
        super().__init__(process.clock, handlers, chance=process.stream.random)
        self._process = process

    def run(self, task: Task, user: str, listener: Any) -> Attempt:
        """Keep the task and run it."""
        self.beginning = task
        attempt = super().run(task, user, listener)
        stop = attempt.stop

        def tell_and_stop() -> None:
            process = self._process
            if not (process.draining or attempt.done.called):
                known = process.world.referee.tasks[task.id]
                process.world.holders.stops(process, process.worker.name, known, (task.dispatch, task.attempt))
            stop()

        attempt.stop = tell_and_stop  # type: ignore[method-assign]
        return attempt


@implementer(ITaskHandler)
class Handler:
    """A handler that takes time, reports, fails, kills its worker or ignores its cancellation, as the payload says."""

    isolation = "async"
    max_attempts = DEFAULT_ATTEMPTS
    backoff = Backoff(first=0.5, longest=4.0)
    summary = ""

    def __init__(self, process: WorkerProcess, kind: str) -> None:
        self.kind = kind
        self.timeout: float | None = 5.0 if kind == "rare" else 60.0
        self._process = process

    async def run(self, task: ITaskContext) -> Any:
        process, payload = self._process, task.payload
        referee = process.world.referee
        mine = process.runner.beginning
        referee.began(process.name, mine, process.slots)
        process.world.holders.began(process.name, mine, process.slots)
        if payload.get("talks"):
            task.log("it begins")
            task.progress(0.5, "under way")
        try:
            if payload["seconds"]:
                await deferLater(process.clock, payload["seconds"])
        except CancelledError:
            if not payload.get("stubborn"):
                raise
            stubborn = True
        else:
            stubborn = False
        finally:
            # what a handler that ignores its cancellation still does counts no more
            referee.ended(process.name, mine)
        if payload.get("kills"):
            # a crash leaves a dump, which names the task; the end of a process that takes all the memory leaves none
            if process.stream.random() < 0.5:
                process.world.clock.call(None, 0, process.crash, mine)
            else:
                process.world.clock.call(None, 0, process.kill)
            await Deferred()
        if stubborn:
            # its slot stays taken
            process.stubborn += 1
            try:
                await deferLater(process.clock, 1.0)
            finally:
                process.stubborn -= 1
        if payload.get("fails"):
            raise ValueError("it was to fail")
        if payload.get("talks"):
            task.log("it ends")
        return object() if payload.get("unstorable") else {"attempt": task.attempt}
