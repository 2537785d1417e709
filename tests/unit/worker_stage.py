"""Workers with a store and a broker in memory, on a clock that only the tests advance. The tests play the servers."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import pytest
from msgspec.structs import replace
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, deferLater
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from zope.interface import implementer

from taskd.broker.memory import MemoryBroker
from taskd.events.records import decode_batch
from taskd.model.backoff import Backoff
from taskd.model.errors import Unavailable
from taskd.model.limits import MAX_RESULT_BYTES
from taskd.model.tasks import NewTask, Task
from taskd.ports.attempts import Assigned
from taskd.ports.handler import ITaskContext, ITaskHandler
from taskd.ports.scheduling import Place, Pool, Served
from taskd.ports.store import IStore
from taskd.ports.workers import WorkerInfo, WorkerStatus
from taskd.store.sqlite.database import InlineRunner
from taskd.store.sqlite.store import SqliteStore
from taskd.worker import handler
from taskd.worker.attempt import Attempt
from taskd.worker.board import IBoard, NoBoard
from taskd.worker.context import OutputListener
from taskd.worker.runner import Runner
from taskd.worker.simulate import Simulate
from taskd.worker.worker import Worker
from tests.unit.running import FakeThreads

LOG_BYTES = 2000


@implementer(ITaskHandler)
class Handler:
    """A handler made from a function of the clock and the task."""

    isolation = "async"
    timeout: float | None = None
    max_attempts = 4
    backoff = Backoff(first=10, jitter=0)
    summary = ""

    def __init__(self, kind: str, function: Callable[[Clock, ITaskContext], Any], clock: Clock) -> None:
        self.kind = kind
        self._function = function
        self._clock = clock

    async def run(self, task: ITaskContext) -> Any:
        result = self._function(self._clock, task)
        return await result if isinstance(result, Deferred) else result


def fail(clock: Clock, task: ITaskContext) -> Any:
    raise ValueError("no such\ncolour")


def leave(clock: Clock, task: ITaskContext) -> Any:
    raise SystemExit(3)


def talk(clock: Clock, task: ITaskContext) -> Any:
    for n in range(task.payload.get("lines", 3)):
        task.log(f"line {n}")
        task.progress(n / 10, f"step {n}")
    return deferLater(clock, task.payload.get("seconds", 1)).addCallback(lambda _: task.log("the end"))


KINDS: dict[str, Callable[[Clock, ITaskContext], Any]] = {
    "echo": lambda clock, task: dict(task.payload),
    "user": lambda clock, task: [task.user, task.task, task.attempt, task.max_attempts],
    "talk": talk,
    "fail": fail,
    "leave": leave,
    "set": lambda clock, task: {1, 2},
    "tuple": lambda clock, task: (1, 2),
    "object": lambda clock, task: object(),
    "large": lambda clock, task: "x" * MAX_RESULT_BYTES,
    "largest": lambda clock, task: "x" * (MAX_RESULT_BYTES - 2),
    "stubborn": lambda clock, task: deferLater(clock, 10).addErrback(lambda _: deferLater(clock, 3)),
}


class Flaky:
    """A store whose methods fail: those in ``away`` without an effect, those in ``answer_lost`` after they are done,
    those in ``broken`` with another error than that of a store that is away."""

    def __init__(self, store: IStore) -> None:
        self._store = store
        self.away: set[str] = set()
        self.answer_lost: set[str] = set()
        self.broken: set[str] = set()
        self._refused: set[str] = set()
        self._delays: dict[str, Deferred[None]] = {}
        self._holds: dict[str, Deferred[None]] = {}
        self._answers: dict[str, Any] = {}
        self.calls: list[str] = []
        self.arguments: list[tuple[str, tuple[Any, ...]]] = []

    def delay(self, name: str) -> Deferred[None]:
        """The answer of the next call of this method waits until the result is fired."""
        self._delays[name] = Deferred()
        return self._delays[name]

    def hold(self, name: str) -> Deferred[None]:
        """The next call of this method begins when the result is fired."""
        self._holds[name] = Deferred()
        return self._holds[name]

    def refuse_once(self, name: str) -> None:
        """The next call of this method fails."""
        self._refused.add(name)

    def answer_once(self, name: str, answer: Any) -> None:
        """The next call of this method answers this."""
        self._answers[name] = answer

    def count(self, name: str) -> int:
        """How often this method was called."""
        return self.calls.count(name)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if name == "now" or not callable(method):
            return method

        async def call(*args: Any) -> Any:
            self.calls.append(name)
            self.arguments.append((name, args))
            if name in self.away:
                raise Unavailable("away")
            if name in self.broken or name in self._refused:
                self._refused.discard(name)
                raise RuntimeError(f"{name} is broken")
            if (held := self._holds.pop(name, None)) is not None:
                await held
            if name in self._answers:
                return self._answers.pop(name)
            result = await method(*args)
            if (delay := self._delays.pop(name, None)) is not None:
                await delay
            if name in self.answer_lost:
                raise Unavailable("the answer is lost")
            return result

        return call


class RecordingBoard(NoBoard):
    """Counts the calls of the worker."""

    def __init__(self) -> None:
        self.beats = 0
        self.names: list[str] = []
        self.stopped = False

    def beaten(self) -> None:
        self.beats += 1

    def rename(self, name: str) -> None:
        self.names.append(name)

    def stopping(self) -> None:
        self.stopped = True


class StageRunner(Runner):
    """A runner that says that slots are hung, and knows what it was to run. ``begun`` has each id and dispatch."""

    slots_hung: Mapping[str, int] = {}

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.begun: list[tuple[int, int]] = []

    @property
    def hung(self) -> Mapping[str, int]:
        return self.slots_hung or super().hung

    def run(self, task: Task, user: str, listener: OutputListener) -> Attempt:
        self.begun.append((task.id, task.dispatch))
        return super().run(task, user, listener)


class Stage:
    """A store, a broker, and workers."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_700_000_000)
        self.runner = InlineRunner()
        store = SqliteStore(self.runner, self.clock)
        self.done(store.start())
        self.broker = MemoryBroker(self.clock)
        self.done(self.broker.start())
        self.real_store = store
        self.store = Flaky(store)
        for name in ("ana", "ben", "cleo"):
            self.done(store.create_user(name, name, "x"))
        self.changes: list[tuple[int, str]] = []
        self.versions: list[tuple[int, int]] = []
        self.outputs: list[dict[str, Any]] = []
        self.worker_changes = 0
        self.routes: list[tuple[str, str]] = []
        self.broker.subscribe(self._received, lambda: None)
        self._runners: dict[Worker, StageRunner] = {}

    def _received(self, body: bytes) -> None:
        batch = decode_batch(body)
        self.changes += [(change.task_id, change.state.value) for change in batch.changes]
        self.versions += [(change.task_id, change.version) for change in batch.changes]
        self.outputs += [json.loads(bytes(output.event)) for output in batch.outputs]
        self.worker_changes += batch.workers
        self.routes += [(queue, kind) for queue, kind in batch.routes]

    def done(self, work: Any) -> Any:
        """The result of a coroutine that must not need time. Raises what it failed with."""
        results: list[Any] = []
        Deferred.fromCoroutine(work).addBoth(results.append)
        assert results, "it needs time"
        if hasattr(results[0], "raiseException"):
            results[0].raiseException()
        return results[0]

    # -- workers

    def worker(
        self,
        slots: int = 10,
        name: str = "w",
        threads: int = 0,
        board: IBoard | None = None,
        kinds: Mapping[str, Callable[[Clock, ITaskContext], Any]] = KINDS,
    ) -> Worker:
        """Start another worker. Its first name is ``name``, the next ones have a number."""
        names = itertools.chain([name], (f"{name}{n}" for n in itertools.count(2)))
        handlers: list[Any] = [Simulate(self.clock), *(Handler(kind, f, self.clock) for kind, f in kinds.items())]
        if threads:
            handlers.append(handler("threaded")(lambda task: None))
        self.threads = FakeThreads(held=True)
        runner = StageRunner(self.clock, handlers, threads=self.threads)
        worker = Worker(
            self.clock,
            self.store,  # type: ignore[arg-type]
            self.broker,
            runner,
            ["tasks"],
            {"async": slots, "thread": threads},
            names.__next__,
            log_bytes=LOG_BYTES,
            board=board,
        )
        self._runners[worker] = runner
        self.done(worker.start())
        # what a worker does at its start
        self.advance(0)
        return worker

    def runner_of(self, worker: Worker) -> StageRunner:
        """The runner of a worker."""
        return self._runners[worker]

    def running(self, worker: Worker) -> list[int]:
        """The tasks whose handlers run in a worker."""
        return sorted(self._runners[worker].running_ids)

    def begun(self, worker: Worker) -> list[int]:
        """The tasks whose handlers were called in a worker, in their order."""
        return [task_id for task_id, _ in self._runners[worker].begun]

    def status(self, name: str = "w") -> WorkerStatus:
        """A worker in the store."""
        return {status.info.name: status for status in self.done(self.real_store.poll_workers()).workers}[name]

    def means(self, name: str = "w") -> dict[tuple[int, str], float]:
        """What a worker has said of how long its tasks take."""
        return {(mean.user_id, mean.kind): mean.seconds for mean in self.status(name).means}

    def fence(self, name: str = "w") -> list[Task]:
        """Take the tasks of a worker back, as a server does."""
        return list(self.done(self.real_store.take_back({name: self.status(name).beat})))

    def drain(self, worker: Worker, grace: float) -> list[bool]:
        """Start draining a worker. Returns a list that gets an element when the drain has ended."""
        ended: list[bool] = []
        Deferred.fromCoroutine(worker.drain(grace)).addCallback(lambda _: ended.append(True))
        self.advance(0)
        return ended

    def register(self, name: str) -> None:
        """Register a worker that the test plays."""
        self.done(self.real_store.register(WorkerInfo(name, ["tasks"], [], {"async": 10})))

    # -- tasks

    def submit(
        self, *specs: NewTask, worker: str | None = "w", hint: bool = True, losses: int = 0, advance: bool = True
    ) -> list[int]:
        """Create tasks that are assigned to this worker, and hint it, as a server does."""
        ids = self.done(self.real_store.draw_ids(len(specs)))
        rows = [replace(spec, id=n, worker=worker, queue="tasks") for n, spec in zip(ids, specs, strict=True)]
        self.done(self.real_store.create_tasks(rows))
        if losses:
            self.sql(f"UPDATE tasks SET losses = {losses} WHERE id IN ({','.join(map(str, ids))})")
        if hint and worker is not None:
            self.broker.hint([worker])
        if advance:
            self.advance(0)
        return list(ids)

    def simulate(self, seconds: float, count: int = 1, user: int = 1, **how: Any) -> list[int]:
        """Submit tasks that take this long. Returns their ids."""
        return self.submit(*[NewTask(user, "t", payload=f'{{"seconds":{seconds}}}')] * count, **how)

    def kind(self, kind: str, payload: str = "{}", **more: Any) -> int:
        """Submit a task of this kind."""
        how = {key: more.pop(key) for key in ("worker", "hint", "losses") if key in more}
        [task_id] = self.submit(NewTask(1, "t", kind, payload, **more), **how)
        return task_id

    def assign_again(self, worker: str = "w", kinds: Sequence[str] = ("simulate",), hint: bool = True) -> list[int]:
        """Assign what waits to a worker, and hint it, as a server does."""
        pool = Pool([Place(worker, 1000)], [Served("tasks", kind, 4) for kind in kinds])
        turn = self.done(self.real_store.assign(pool, 500, 0))
        if hint:
            self.broker.hint([worker])
        self.advance(0)
        return [task.id for task in turn.tasks]

    def cancel(self, task_id: int, hint: str | None = "w") -> None:
        """Cancel a task, and order this worker to stop it, as a server does."""
        self.done(self.real_store.cancel(1, task_id))
        if hint is not None:
            self.broker.hint([hint], orders=True)
            self.advance(0)

    def found(self, worker: str = "w") -> list[Assigned]:
        """What a look finds now."""
        return list(self.done(self.real_store.look(worker, [])))

    def tasks(self, ids: Sequence[int]) -> list[Task]:
        """The present rows of these tasks, in this order."""
        users = {t.user_id for t in self.done(self.real_store.find_tasks(ids))}
        found = {t.id: t for user in users for t in self.done(self.real_store.get_tasks(user, ids))}
        return [found[n] for n in ids]

    def states(self, ids: Sequence[int]) -> list[tuple[str, int]]:
        """State and attempt of each of these tasks."""
        return [(t.state.value, t.attempt) for t in self.tasks(ids)]

    def workers(self, ids: Sequence[int]) -> list[str | None]:
        """The worker of each of these tasks."""
        return [t.worker for t in self.tasks(ids)]

    def held(self) -> list[int]:
        """The tasks that some worker holds, as the store says."""
        rows = self.sql("SELECT id FROM tasks WHERE held ORDER BY id")
        return [task_id for (task_id,) in rows]

    def sql(self, text: str) -> list[Any]:
        """Execute a statement in the database."""
        return list(self.done(_as_coroutine(self.runner.runInteraction(lambda c: c.execute(text).fetchall()))))

    # -- time

    def advance(self, seconds: float) -> None:
        """Let time pass, in small steps."""
        end = self.clock.seconds() + seconds
        for _ in range(8):
            self.clock.advance(0.001)
        while self.clock.seconds() < end:
            self.clock.advance(min(0.05, end - self.clock.seconds()))
            for _ in range(3):
                self.clock.advance(0.0001)


async def _as_coroutine(work: Any) -> Any:
    return await work


def fail_at_once(*_: Any) -> None:
    """A step that fails."""
    raise RuntimeError("broken")


@pytest.fixture
def events() -> Iterator[list[LogEvent]]:
    """What is logged."""
    found: list[LogEvent] = []
    observer = cast(ILogObserver, found.append)
    globalLogPublisher.addObserver(observer)
    yield found
    globalLogPublisher.removeObserver(observer)


def notes(events: Sequence[LogEvent]) -> list[str]:
    """The lines of the log."""
    return [formatEvent(event) for event in events]


@pytest.fixture
def stage() -> Iterator[Stage]:
    """A stage with users and without a worker."""
    made = Stage()
    yield made
    made.runner.close()
