"""Servers and workers as processes that start, drain, freeze and die."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from zope.interface import implementer

from taskd.api.accounts import Accounts
from taskd.model.backoff import Backoff
from taskd.model.errors import Unavailable
from taskd.model.limits import DEFAULT_ATTEMPTS
from taskd.model.tasks import DEFAULT_KIND, Task
from taskd.ports.handler import ITaskContext, ITaskHandler
from taskd.server.task_server import TaskServer
from taskd.worker.attempt import Attempt
from taskd.worker.runner import Runner
from taskd.worker.worker import Worker
from tests.simulation.broker_link import BrokerLink
from tests.simulation.clock import OwnClock, Owner
from tests.simulation.referee import NO_ERROR
from tests.simulation.store import StoreLink

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
        super().__init__()
        self.name = name
        self.world = world
        self.stream = world.stream(name)
        self.clock: Any = OwnClock(world.clock, self, self.stream.uniform(-2.0, 2.0))
        self.store = StoreLink(world, self)
        self.broker = BrokerLink(world, self)
        self.draining = False

    def start(self) -> None:
        """Start the process, as ``twistd`` does."""
        self.world.note(self.name, "starts")
        Deferred.fromCoroutine(self._start()).addErrback(self._broken)

    async def _start(self) -> None:
        await self.broker.start()
        try:
            await self.store.start()
        except Unavailable:
            return
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
        self.world.process_ended(self)

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
        """Tasks that it runs, has claimed, or is claiming."""
        return set()

    def _broken(self, failure: Failure) -> None:
        self.world.referee.fail(NO_ERROR, f"{self.name}: {failure.getErrorMessage()}")


def _no_passwords(*_: Any) -> NoReturn:
    raise AssertionError("all clients log in with tokens")


class ServerProcess(Process):
    """A task server."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        plan, self._ids = world.plan, 0
        self.connections: list[Connection] = []
        self.server = TaskServer(
            self.clock,
            self.store,
            self.broker,
            Accounts(self.store, _no_passwords, 4, SESSION_SECONDS),
            queues=plan.queues,
            window=plan.window,
            lease=plan.lease,
            node=name,
            new_id=self._new_id,
        )

    def _new_id(self) -> str:
        self._ids += 1
        return f"{self.name}:{self._ids}"

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
    """A worker."""

    def __init__(self, world: World, name: str, slots: int) -> None:
        super().__init__(world, name)
        self.slots = slots
        self._serving = False
        handlers = [Handler(self, kind) for kind in KINDS]
        runner = self.runner = RecordingRunner(self.clock, handlers, chance=self.stream.random)
        plan = world.plan
        self.worker = Worker(
            self.clock,
            self.store,
            self.broker,
            runner,
            plan.queues,
            {"async": slots},
            plan.lease,
            name,
            log_bytes=2000,
        )

    def tasks(self) -> set[int]:
        worker = self.worker
        backlog = [held for pool in worker.claims.pools.values() for held in pool.waiting]
        return {*worker.held.running, *worker.held.claiming, *(held.claim.task_id for held in backlog)}

    def serve(self) -> None:
        if not self.draining:
            self._serving = True
            Deferred.fromCoroutine(self.worker.start()).addErrback(self._broken)

    async def drain(self) -> None:
        if self._serving:
            # a claim whose answer was lost may still be executed
            before = self.world.clock.seconds() - 2 * PATIENCE
            await self.worker.drain(self.stream.choice((0.0, 1.0, 5.0)))
            self.world.referee.drained(self.name, self.store.disturbed < before)


class RecordingRunner(Runner):
    """A runner that keeps the task that it begins, as a handler sees only a part of it."""

    beginning: Task

    def run(self, task: Task, user: str, listener: Any) -> Attempt:
        """Keep the task and run it."""
        self.beginning = task
        return super().run(task, user, listener)


@implementer(ITaskHandler)
class Handler:
    """A handler that takes time, reports, fails, kills its worker or ignores its cancellation, as the payload says."""

    isolation = "async"
    timeout: float | None = 5.0
    max_attempts = DEFAULT_ATTEMPTS
    backoff = Backoff(first=0.5, longest=4.0)
    summary = ""

    def __init__(self, process: WorkerProcess, kind: str) -> None:
        self.kind = kind
        self._process = process

    async def run(self, task: ITaskContext) -> Any:
        process, payload = self._process, task.payload
        referee = process.world.referee
        referee.began(process.name, process.runner.beginning, process.slots)
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
            # the slot is free, even if the handler ignores its cancellation
            referee.ended(process.name)
        if payload.get("kills"):
            process.world.clock.call(None, 0, process.kill)
            await Deferred()
        if stubborn:
            await deferLater(process.clock, 1.0)
        if payload.get("fails"):
            raise ValueError("it was to fail")
        if payload.get("talks"):
            task.log("it ends")
        return object() if payload.get("unstorable") else {"attempt": task.attempt}
