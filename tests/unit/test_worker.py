"""The worker, with a store and a broker in memory, on a clock that only the tests advance."""

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
from zope.interface.verify import verifyObject

from taskd.broker.memory import MemoryBroker
from taskd.events.records import CancelOrder, decode_batch
from taskd.model.backoff import Backoff
from taskd.model.errors import Unavailable
from taskd.model.limits import MAX_RESULT_BYTES
from taskd.model.states import State
from taskd.model.tasks import NewTask, Task
from taskd.ports.attempts import Claim, Held, Outcome
from taskd.ports.broker import ORDERS
from taskd.ports.handler import ITaskContext, ITaskHandler
from taskd.ports.scheduling import Dispatch
from taskd.ports.store import IStore
from taskd.ports.workers import WorkerInfo, WorkerState, WorkerStatus
from taskd.protocol.messages import encode
from taskd.store.sqlite.database import InlineRunner
from taskd.store.sqlite.store import SqliteStore
from taskd.worker import handler
from taskd.worker.board import NoBoard
from taskd.worker.held import HeldState
from taskd.worker.looks import ACK_AFTER
from taskd.worker.runner import Runner
from taskd.worker.simulate import Simulate
from taskd.worker.worker import Worker
from tests.unit.running import FakeThreads

LOOK = 10.0
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
    "stubborn": lambda clock, task: deferLater(clock, 10).addErrback(lambda _: deferLater(clock, 5)),
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
        self.calls: list[str] = []

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

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if name == "now" or not callable(method):
            return method

        async def call(*args: Any) -> Any:
            self.calls.append(name)
            if name in self.away:
                raise Unavailable("away")
            if name in self.broken or name in self._refused:
                self._refused.discard(name)
                raise RuntimeError(f"{name} is broken")
            if (held := self._holds.pop(name, None)) is not None:
                await held
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


class HungRunner(Runner):
    """A runner that says that slots are hung."""

    slots_hung: Mapping[str, int] = {}

    @property
    def hung(self) -> Mapping[str, int]:
        return self.slots_hung


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
        self.store = Flaky(store)
        self.done(store.create_user("ana", "ana", "x"))
        self.changes: list[tuple[int, str]] = []
        self.outputs: list[dict[str, Any]] = []
        self.worker_changes = 0
        self.broker.subscribe(self._received, lambda: None)

    def _received(self, body: bytes) -> None:
        batch = decode_batch(body)
        self.changes += [(change.task_id, change.state.value) for change in batch.changes]
        self.outputs += [json.loads(bytes(output.event)) for output in batch.outputs]
        self.worker_changes += batch.workers

    def done(self, work: Any) -> Any:
        """The result of a coroutine that must not need time. Raises what it failed with."""
        results: list[Any] = []
        Deferred.fromCoroutine(work).addBoth(results.append)
        assert results, "it needs time"
        if hasattr(results[0], "raiseException"):
            results[0].raiseException()
        return results[0]

    def worker(
        self,
        slots: int = 10,
        name: str = "w",
        threads: int = 0,
        board: RecordingBoard | None = None,
        kinds: Mapping[str, Callable[[Clock, ITaskContext], Any]] = KINDS,
    ) -> Worker:
        """Start another worker. Its first name is ``name``, the next ones have a number."""
        names = itertools.chain([name], (f"{name}{n}" for n in itertools.count(2)))
        handlers: list[Any] = [Simulate(self.clock), *(Handler(kind, f, self.clock) for kind, f in kinds.items())]
        if threads:
            handlers.append(handler("threaded")(lambda task: None))
        self.threads = FakeThreads(held=True)
        worker = Worker(
            self.clock,
            self.store,  # type: ignore[arg-type]
            self.broker,
            HungRunner(self.clock, handlers, threads=self.threads),
            ["tasks"],
            {"async": slots, "thread": threads},
            names.__next__,
            log_bytes=LOG_BYTES,
            board=board,
        )
        self.done(worker.start())
        return worker

    def kill(self, worker: Worker) -> None:
        """End a worker as SIGKILL does. The broker does not know it yet."""
        worker.beats.stop()
        worker.looks.stop()
        worker.intake._giving_back.stop()
        for held in tuple(worker.held.running.values()):
            worker.outcomes.drop(held)

    def status(self, name: str = "w") -> WorkerStatus:
        """A worker in the store."""
        return {status.info.name: status for status in self.done(self.store._store.poll_workers()).workers}[name]

    def fence(self, name: str = "w") -> list[Task]:
        """Take the tasks of a worker back, as a server does."""
        return list(self.done(self.store._store.take_back({name: self.status(name).beat})))

    def register(self, name: str) -> None:
        """Register a worker that the test plays."""
        self.done(self.store._store.register(WorkerInfo(name, ["tasks"], [], {"async": 10})))

    def suspects(self, losses: int, count: int, kind: str = "simulate", payload: str = '{"seconds":100}') -> list[int]:
        """Submit tasks that have been lost so often."""
        rows = [NewTask(1, "t", kind, payload, "tasks", state=State.QUEUED)] * count
        tasks = self.done(self.store._store.create_tasks(f"suspects {self.clock.seconds()} {losses}", rows))
        ids = [task.id for task in tasks]
        self.sql(f"UPDATE tasks SET losses = {losses} WHERE id IN ({','.join(map(str, ids))})")
        self.done(self.broker.publish(tasks[0].route.name, [Dispatch(n, 1) for n in ids]))
        self.advance(0)
        return ids

    def running(self, worker: Worker) -> list[int]:
        """The tasks whose handlers run in a worker."""
        return sorted(n for n, held in worker.held.running.items() if held.state is HeldState.RUNNING)

    def submit(self, *specs: NewTask) -> list[int]:
        """Create tasks and publish them, as a server does."""
        rows = [replace(spec, user_id=1, state=State.QUEUED) for spec in specs]
        tasks = self.done(self.store._store.create_tasks(f"batch {len(self.changes)} {self.clock.seconds()}", rows))
        for route in {task.route for task in tasks}:
            messages = [Dispatch(t.id, t.dispatch) for t in tasks if t.route == route]
            self.done(self.broker.publish(route.name, messages))
        self.advance(0)
        return [t.id for t in tasks]

    def dispatch_again(self, *ids: int) -> None:
        """Dispatch waiting tasks, as a server does."""
        tasks = self.done(
            self.store._store.dispatch(f"again {ids} {self.clock.seconds()}", self.tasks(ids[:1])[0].route, 100, None)
        ).tasks
        for task in tasks:
            self.done(self.broker.publish(task.route.name, [Dispatch(task.id, task.dispatch)]))
        self.advance(0)

    def simulate(self, seconds: float, count: int = 1) -> list[int]:
        """Submit tasks that take this long. Returns their ids."""
        return self.submit(*[NewTask(1, "t", payload=f'{{"seconds":{seconds}}}', queue="tasks")] * count)

    def advance(self, seconds: float) -> None:
        """Let time pass, in small steps."""
        end = self.clock.seconds() + seconds
        for _ in range(8):
            self.clock.advance(0.001)
        while self.clock.seconds() < end:
            self.clock.advance(min(0.25, end - self.clock.seconds()))
            for _ in range(3):
                self.clock.advance(0.001)

    def tasks(self, ids: Sequence[int]) -> list[Task]:
        """The present rows of these tasks, in this order."""
        found = {t.id: t for t in self.done(self.store._store.get_tasks(1, ids))}
        return [found[n] for n in ids]

    def workers(self, ids: Sequence[int]) -> list[str]:
        """The worker of each of these tasks."""
        statement = f"SELECT worker FROM tasks WHERE id IN ({','.join(map(str, ids))}) ORDER BY id"
        rows = self.done(_as_coroutine(self.runner.runInteraction(lambda c: c.execute(statement).fetchall())))
        return [worker for (worker,) in rows]

    def states(self, ids: Sequence[int]) -> list[tuple[str, int]]:
        """State and attempt of each of these tasks."""
        return [(t.state.value, t.attempt) for t in self.tasks(ids)]

    def sql(self, text: str) -> None:
        """Execute a statement in the database."""
        self.runner.runInteraction(lambda cursor: cursor.execute(text))

    def depth(self) -> int:
        """Messages ready in the broker."""
        return int(self.done(self.broker.depth("tasks")))

    def drain(self, worker: Worker, grace: float) -> list[bool]:
        """Start draining a worker. Returns a list that gets an element when the drain has ended."""
        ended: list[bool] = []
        Deferred.fromCoroutine(worker.drain(grace)).addCallback(lambda _: ended.append(True))
        self.advance(0)
        return ended


async def _as_coroutine(work: Any) -> Any:
    return await work


async def fail_at_once(*_: Any) -> None:
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
    """A stage with a user and without a worker."""
    made = Stage()
    yield made
    made.runner.close()


def test_handlers_provide_their_interface() -> None:
    verifyObject(ITaskHandler, Simulate(Clock()))


def test_a_task_is_claimed_run_finished_announced_and_acked(stage: Stage) -> None:
    worker = stage.worker()
    [task] = stage.simulate(2)
    assert stage.states([task]) == [("running", 1)]
    assert worker.busy == 1
    stage.advance(2)
    assert stage.states([task]) == [("completed", 1)]
    assert (stage.tasks([task])[0].result, worker.busy, stage.depth()) == ('{"seconds":2}', 0, 0)
    assert stage.changes == [(task, "running"), (task, "completed")]


def test_tasks_of_one_delivery_are_claimed_and_finished_together(stage: Stage) -> None:
    stage.worker(100)
    ids = stage.simulate(0, 100)
    assert {s for s, _ in stage.states(ids)} == {"completed"}
    assert (stage.store.calls.count("claim"), stage.store.calls.count("finish")) == (1, 1)


def test_no_more_tasks_than_slots_run_at_a_time(stage: Stage) -> None:
    worker = stage.worker(3)
    ids = stage.simulate(1, 8)
    assert [s for s, _ in stage.states(ids)].count("running") == worker.busy == 3
    stage.advance(1.1)
    assert [s for s, _ in stage.states(ids)].count("running") == 3
    stage.advance(3)
    assert {s for s, _ in stage.states(ids)} == {"completed"}


@pytest.mark.parametrize(
    ("kind", "payload", "error"),
    [
        ("fail", "{}", "ValueError: no such colour"),
        ("leave", "{}", "SystemExit: 3"),
        ("set", "{}", "the result cannot be stored: result must not contain an object of type set"),
        ("object", "{}", "the result cannot be stored: result cannot be written as JSON: Encoding objects of type"),
        (
            "large",
            "{}",
            f"the result cannot be stored: result must have at most {MAX_RESULT_BYTES} bytes as JSON, not 262146",
        ),
        ("simulate", '{"seconds":-1}', "seconds must be a number from 0 to 604800"),
        ("simulate", '{"seconds":"two"}', "seconds must be a number from 0 to 604800"),
        ("simulate", '{"seconds":true}', "seconds must be a number from 0 to 604800"),
    ],
)
def test_an_attempt_that_fails_says_why_in_one_line(stage: Stage, kind: str, payload: str, error: str) -> None:
    stage.worker()
    [task] = stage.submit(NewTask(1, "t", kind, payload, "tasks", max_attempts=1))
    [found] = stage.tasks([task])
    assert found.state is State.FAILED and found.error is not None
    assert found.error.startswith(error) and "\n" not in found.error


@pytest.mark.parametrize(("kind", "length"), [("echo", 7), ("largest", MAX_RESULT_BYTES), ("tuple", 5)])
def test_a_result_is_stored_as_json(stage: Stage, kind: str, length: int) -> None:
    stage.worker()
    [task] = stage.submit(NewTask(1, "t", kind, '{"a":1}', "tasks"))
    [found] = stage.tasks([task])
    assert found.state is State.COMPLETED and found.result is not None and len(found.result) == length


def test_repeated_late_and_cancelled_deliveries_claim_nothing(stage: Stage) -> None:
    [task] = stage.simulate(5)
    stage.done(stage.broker.publish("tasks", [Dispatch(task, 1), Dispatch(task, 7), Dispatch(10**9, 1)]))
    [cancelled] = stage.simulate(5)
    stage.done(stage.store._store.cancel(1, cancelled))
    stage.worker(20)
    stage.advance(6)
    assert stage.states([task, cancelled]) == [("completed", 1), ("cancelled", 0)]
    assert stage.depth() == 0


def test_messages_that_come_again_take_nothing_from_a_worker_that_lives(stage: Stage) -> None:
    first = stage.worker(name="first")
    ids = stage.simulate(3, 4)
    second = stage.worker(name="second")
    consumer = stage.broker._queues["tasks"].consumers[0]
    consumer.ready = False
    consumer.close()
    consumer.on_lost()
    stage.advance(1)
    assert (stage.running(first), stage.running(second)) == (ids, [])
    assert stage.depth() == 0 and not stage.broker._queues["tasks"].consumers[1].unacked, "acked and forgotten"
    stage.advance(3)
    assert stage.states(ids) == [("completed", 1)] * 4


def test_tasks_of_a_dead_worker_run_again_once_a_server_has_taken_them_back(stage: Stage) -> None:
    first = stage.worker(name="first")
    ids = stage.simulate(3, 4)
    consumer = stage.broker._queues["tasks"].consumers.pop()
    consumer.ready = False
    stage.kill(first)
    second = stage.worker(name="second")
    consumer.close()
    stage.advance(20)
    assert stage.states(ids) == [("running", 1)] * 4 and second.busy == 0
    assert [t.id for t in stage.fence("first")] == ids
    stage.dispatch_again(*ids)
    stage.advance(20)
    assert stage.states(ids) == [("completed", 1)] * 4


def test_the_end_of_a_task_is_announced_by_another_worker_if_its_own_died_first(stage: Stage) -> None:
    [task] = stage.simulate(3)
    delivered: list[Any] = []
    dead = stage.broker.consume("tasks", 1, delivered.extend, lambda: None)
    stage.advance(0)
    stage.register("dead")
    [claimed] = stage.done(stage.store._store.claim("dead", [Claim(task, 1)]))
    outcome = Outcome(task, 1, claimed.attempt, State.COMPLETED, "1")
    stage.done(stage.store._store.finish("dead", [outcome]))
    stage.done(dead.stop())
    dead.close()
    stage.worker()
    stage.advance(0)
    assert (stage.changes, stage.depth(), stage.states([task])) == ([(task, "completed")], 0, [("completed", 1)])


def test_a_message_for_a_task_that_another_worker_holds_is_acked_and_forgotten(stage: Stage) -> None:
    stage.register("other")
    [task] = stage.simulate(3)
    stage.done(stage.store._store.claim("other", [Claim(task, 1)]))
    worker = stage.worker()
    stage.advance(1)
    assert (stage.states([task]), worker.busy, stage.depth()) == ([("running", 1)], 0, 0)


# -- fenced


def test_a_fenced_worker_stops_its_attempts_and_goes_on_under_another_name(stage: Stage) -> None:
    board = RecordingBoard()
    worker = stage.worker(board=board)
    ids = stage.simulate(100, 3)
    assert [t.id for t in stage.fence()] == ids
    stage.advance(1.1)
    assert (worker.name, worker.busy, board.names) == ("w2", 0, ["w", "w2"])
    assert stage.depth() == 0 and not stage.broker._queues["tasks"].consumers[0].unacked
    assert stage.status("w2").state is WorkerState.SERVING
    assert stage.worker_changes == 2
    stage.dispatch_again(*ids)
    assert stage.workers(ids) == ["w2"] * 3
    # now they are suspects, and the third one waits for a place
    stage.advance(106)
    assert stage.states(ids) == [("completed", 1)] * 3


def test_an_outcome_and_reports_under_a_fenced_name_are_dropped(stage: Stage) -> None:
    worker = stage.worker()
    stage.store.away = {"finish", "report"}
    [silent] = stage.simulate(0)
    [task] = stage.submit(NewTask(1, "t", "talk", '{"seconds":0}', "tasks"))
    stage.advance(0.5)
    assert worker.busy == 2
    stage.fence()
    stage.advance(1.5)
    stage.store.away = set()
    stage.store.calls.clear()
    stage.advance(3)
    assert "finish" not in stage.store.calls
    assert stage.states([silent, task]) == [("waiting", 0)] * 2 and worker.busy == 0
    assert stage.done(stage.store._store.read_log(task, None, 10)) == []


def test_a_fenced_worker_requeues_what_it_cannot_claim_and_beats_at_once(stage: Stage) -> None:
    stage.worker()
    stage.fence()
    [task] = stage.simulate(3)
    assert stage.states([task]) == [("queued", 0)]
    stage.advance(1.1)
    assert stage.states([task]) == [("running", 1)] and stage.workers([task]) == ["w2"]


def test_a_fenced_worker_that_cannot_beat_does_not_pass_messages_round(stage: Stage) -> None:
    stage.worker()
    stage.fence()
    stage.store.away = {"beat"}
    [task] = stage.simulate(3)
    stage.advance(5)
    assert stage.store.calls.count("claim") == 1
    stage.store.away = set()
    stage.advance(2.5)
    assert stage.states([task]) == [("running", 1)]


def test_a_refused_claim_stops_a_worker_only_until_its_next_beat(stage: Stage) -> None:
    stage.worker()
    stage.store.away = {"beat"}
    stage.sql("UPDATE workers SET state = 'fenced'")
    [task] = stage.simulate(3)
    stage.sql("UPDATE workers SET state = 'serving'")
    stage.advance(2)
    assert stage.states([task]) == [("queued", 0)]
    stage.store.away = set()
    stage.advance(2.5)
    assert stage.states([task]) == [("running", 1)] and stage.workers([task]) == ["w"]


def test_a_claim_that_was_answered_after_the_fence_begins_nothing(stage: Stage) -> None:
    worker = stage.worker()
    answer = stage.store.delay("claim")
    [task] = stage.simulate(3)
    assert stage.states([task]) == [("running", 1)]
    stage.fence()
    stage.advance(1.1)
    assert worker.name == "w2"
    answer.callback(None)
    stage.advance(1)
    assert (worker.busy, stage.states([task]), stage.depth()) == (0, [("waiting", 0)], 0)
    assert not stage.broker._queues["tasks"].consumers[0].unacked


def test_a_worker_fenced_while_it_drains_ends_without_a_new_registration(stage: Stage) -> None:
    worker = stage.worker()
    [task] = stage.submit(NewTask(1, "t", "stubborn", queue="tasks"))
    ended = stage.drain(worker, 60)
    stage.fence()
    stage.advance(3)
    assert not ended, "the handler ignores its cancellation for a while"
    stage.advance(4)
    assert ended and stage.states([task]) == [("waiting", 0)]
    assert [s.info.name for s in stage.done(stage.store._store.poll_workers()).workers] == ["w"]
    assert stage.store.calls.count("register") == 1


# -- what the worker runs, and what the store says that it runs


UNDO = "UPDATE tasks SET state = 'queued', attempt = 0, version = 1, worker = NULL, started_at = NULL"


def test_a_claim_that_a_database_crash_undid_is_repeated(stage: Stage) -> None:
    worker = stage.worker()
    [short, long] = [*stage.simulate(3), *stage.simulate(100)]
    stage.sql(UNDO)
    stage.advance(4)
    assert stage.states([short, long]) == [("completed", 1), ("queued", 0)]
    stage.advance(LOOK)
    assert stage.states([short, long]) == [("completed", 1), ("running", 1)] and worker.busy == 1
    stage.advance(100)
    assert stage.states([short, long]) == [("completed", 1)] * 2


def test_after_an_outage_the_worker_looks_with_the_first_beat_that_is_accepted(stage: Stage) -> None:
    board = RecordingBoard()
    worker = stage.worker(board=board)
    [task] = stage.simulate(100)
    stage.advance(0.5)
    stage.store.away = {"beat", "held_by", "claim"}
    beats = board.beats
    stage.advance(2.1)
    assert board.beats == beats
    stage.sql(UNDO)
    stage.store.away = set()
    stage.advance(1.1)
    assert stage.states([task]) == [("running", 1)] and worker.busy == 1


def test_what_was_taken_back_is_stopped_at_the_next_look(stage: Stage) -> None:
    worker = stage.worker()
    [lost, kept] = stage.simulate(200, 2)
    stage.done(stage.store._store.release("w", [Held(lost, 1, 1)]))
    stage.advance(LOOK + 1)
    assert stage.running(worker) == [kept]
    assert stage.states([lost, kept]) == [("waiting", 0), ("running", 1)]


def test_a_claim_whose_answer_and_message_were_lost_goes_back_after_two_looks(stage: Stage) -> None:
    stage.worker()
    [task] = stage.simulate(100)
    [lost] = stage.done(stage.store._store.create_tasks("lost", [NewTask(1, "t", queue="tasks", state=State.QUEUED)]))
    stage.done(stage.store._store.claim("w", [Claim(lost.id, 1)]))
    stage.advance(LOOK)
    assert stage.states([lost.id, task]) == [("running", 1)] * 2
    stage.advance(LOOK)
    assert stage.states([lost.id, task]) == [("waiting", 0), ("running", 1)]
    assert stage.changes[-1] == (lost.id, "waiting")


def test_what_is_just_given_back_does_not_begin(stage: Stage) -> None:
    worker = stage.worker()
    [lost] = stage.done(stage.store._store.create_tasks("lost", [NewTask(1, "t", queue="tasks", state=State.QUEUED)]))
    stage.done(stage.store._store.claim("w", [Claim(lost.id, 1)]))
    stage.advance(LOOK)
    release = stage.store.hold("release")
    stage.advance(LOOK)
    # its message comes after all, and the store says that this worker has it
    stage.done(stage.broker.publish("tasks", [Dispatch(lost.id, 1)]))
    stage.advance(1)
    assert stage.running(worker) == []
    release.callback(None)
    stage.advance(1)
    assert (stage.running(worker), stage.states([lost.id]), stage.depth()) == ([], [("waiting", 0)], 0)


def test_looks_survive_any_error(stage: Stage, events: list[LogEvent]) -> None:
    worker = stage.worker()
    [task] = stage.simulate(200)
    stage.store.broken = {"held_by"}
    stage.advance(3 * LOOK + 1)
    assert len([event for event in events if "log_failure" in event]) == 3
    stage.store.broken = set()
    stage.done(stage.store._store.cancel(1, task))
    stage.advance(LOOK)
    assert worker.busy == 0


# -- suspects


def test_few_suspects_run_at_a_time_the_more_often_they_were_lost(stage: Stage) -> None:
    worker = stage.worker(64)
    once = stage.suspects(1, 20)
    assert len(stage.running(worker)) == 16
    twice = stage.suspects(2, 2)
    stage.advance(1)
    assert not set(twice) & set(stage.running(worker)), "all places of suspects are taken"
    assert stage.states([*once, *twice]) == [("running", 1)] * 22, "they are claimed"


def test_of_those_lost_three_times_one_runs_at_a_time(stage: Stage) -> None:
    worker = stage.worker(100)
    ids = stage.suspects(3, 3, payload='{"seconds":2}')
    fresh = stage.simulate(100, 20)
    assert stage.running(worker) == [ids[0], *fresh]
    stage.advance(2.2)
    assert stage.running(worker) == [ids[1], *fresh]
    stage.advance(2.2)
    assert stage.states(ids) == [("completed", 1), ("completed", 1), ("running", 1)]


def test_a_suspect_runs_without_a_place_after_five_seconds(stage: Stage) -> None:
    worker = stage.worker(4)
    ids = stage.suspects(2, 3)
    stage.advance(4.8)
    assert stage.running(worker) == ids[:1]
    stage.advance(0.5)
    assert stage.running(worker) == ids


def test_a_suspect_that_waits_takes_no_slot_and_is_first_when_one_is_free(stage: Stage) -> None:
    worker = stage.worker(2)
    first, second = stage.suspects(1, 2)
    talks = [NewTask(1, "t", "talk", f'{{"seconds":{seconds}}}', "tasks") for seconds in (8, 100, 100)]
    short, *more = stage.submit(*talks)
    stage.advance(0.5)
    assert stage.running(worker) == [first, short]
    stage.advance(6)
    assert stage.running(worker) == [first, short], "no slot is free"
    stage.advance(2)
    assert stage.running(worker) == [first, second] and stage.states(more) == [("queued", 0)] * 2


def test_suspects_on_the_reactor_and_in_threads_share_the_places(stage: Stage) -> None:
    worker = stage.worker(4, threads=4)
    [one] = stage.suspects(3, 1)
    [other] = stage.suspects(3, 1, kind="threaded", payload="{}")
    stage.advance(0.1)
    assert stage.running(worker) == [one] and other in worker.held.running


def test_a_waiting_suspect_that_is_cancelled_is_forgotten(stage: Stage) -> None:
    worker = stage.worker(4)
    ids = stage.suspects(1, 2)
    stage.done(stage.store._store.cancel(1, ids[1]))
    stage.broker.announce(encode(CancelOrder(ids)), ORDERS)
    stage.advance(0)
    assert (worker.busy, stage.running(worker)) == (1, ids[:1])
    stage.advance(6)
    assert stage.running(worker) == ids[:1]


def test_drain_gives_waiting_suspects_back_unspent(stage: Stage) -> None:
    worker = stage.worker(4)
    ids = stage.suspects(1, 2, payload='{"seconds":2}')
    ended = stage.drain(worker, 10)
    assert stage.states(ids) == [("running", 1), ("waiting", 0)]
    stage.advance(2)
    assert ended and stage.states(ids) == [("completed", 1), ("waiting", 0)]


# -- acks


def test_a_long_task_is_acked_early(stage: Stage) -> None:
    stage.worker(1)
    [task, second] = stage.simulate(2 * ACK_AFTER, 2)
    held = stage.broker._queues["tasks"].consumers[0].unacked
    stage.advance(ACK_AFTER - 60)
    assert [d.task_id for d in held] == [task]
    stage.advance(120)
    # the broker delivers the next message in its place, which waits for a slot
    assert [d.task_id for d in held] == [second]
    assert stage.states([task, second]) == [("running", 1), ("queued", 0)]
    stage.advance(ACK_AFTER)
    assert stage.states([task, second]) == [("completed", 1), ("running", 1)]


def test_a_worker_whose_slots_are_taken_holds_no_more_than_it_prefetches(stage: Stage) -> None:
    stage.worker(3)
    ids = stage.simulate(100, 10)
    unacked = stage.broker._queues["tasks"].consumers[0].unacked
    for _ in range(50):
        stage.advance(0.1)
        assert len(unacked) == 3 and stage.depth() == 7
    assert [s for s, _ in stage.states(ids)].count("running") == 3


def test_a_message_of_a_running_task_that_comes_again_needs_no_slot(stage: Stage) -> None:
    """The broker was restarted: all slots are taken, and the messages must not go round."""
    worker = stage.worker(2)
    ids = stage.simulate(100, 2)
    consumer = stage.broker._queues["tasks"].consumers[0]
    consumer.close()
    consumer.on_lost()
    stage.advance(0.1)
    assert stage.running(worker) == ids and {d.task_id for d in consumer.unacked} == set(ids)
    assert not worker.claims.pools["async"].waiting
    stage.advance(5)
    assert {d.task_id for d in consumer.unacked} == set(ids) and stage.depth() == 0
    stage.advance(100)
    assert stage.states(ids) == [("completed", 1)] * 2 and not consumer.unacked


def test_claims_wait_for_a_store_that_is_away(stage: Stage) -> None:
    worker = stage.worker()
    stage.store.away = {"claim"}
    ids = stage.simulate(1, 3)
    assert stage.states(ids) == [("queued", 0)] * 3
    stage.advance(5)
    assert worker.busy == 0
    stage.store.away = set()
    stage.advance(2.5)
    assert stage.states(ids) == [("completed", 1)] * 3


def test_a_claim_whose_answer_was_lost_is_repeated(stage: Stage) -> None:
    stage.worker()
    stage.store.answer_lost = {"claim"}
    ids = stage.simulate(1, 3)
    assert stage.states(ids) == [("running", 1)] * 3
    stage.store.answer_lost = set()
    stage.advance(2.5)
    assert stage.states(ids) == [("completed", 1)] * 3


@pytest.mark.parametrize("trouble", ["away", "answer_lost"])
def test_outcomes_wait_for_a_store_that_is_away(stage: Stage, trouble: str) -> None:
    worker = stage.worker()
    setattr(stage.store, trouble, {"finish"})
    ids = stage.simulate(0, 3)
    assert (worker.busy, stage.depth()) == (3, 0)
    assert len(stage.broker._queues["tasks"].consumers[0].unacked) == 3, "nothing is acked before its outcome is stored"
    setattr(stage.store, trouble, set())
    stage.advance(1.5)
    assert stage.states(ids) == [("completed", 1)] * 3
    assert (worker.busy, len(stage.broker._queues["tasks"].consumers[0].unacked)) == (0, 0)
    assert sorted(n for n, state in stage.changes if state == "completed") == ids


def test_drain_waits_for_tasks_that_end_within_the_grace_time(stage: Stage) -> None:
    worker = stage.worker()
    ids = stage.simulate(3, 2)
    ended = stage.drain(worker, 10)
    later = stage.simulate(1)
    stage.advance(2)
    assert not ended
    stage.advance(2)
    assert ended
    assert stage.states([*ids, *later]) == [("completed", 1), ("completed", 1), ("queued", 0)]
    assert stage.depth() == 1, "no more messages are taken"


def test_drain_releases_the_other_tasks_without_counting_the_attempt(stage: Stage) -> None:
    worker = stage.worker(2)
    running = stage.simulate(100, 2)
    ended = stage.drain(worker, 10)
    stage.advance(11)
    assert ended and worker.busy == 0
    assert stage.states(running) == [("waiting", 0)] * 2
    assert stage.depth() == 0 and not stage.broker._queues["tasks"].consumers[0].unacked
    assert stage.changes[-2:] == [(n, "waiting") for n in running]


def test_drain_waits_a_limited_time_for_a_task_that_does_not_stop(stage: Stage) -> None:
    worker = stage.worker()
    [task] = stage.submit(NewTask(1, "t", "stubborn", queue="tasks"))
    ended = stage.drain(worker, 1)
    stage.advance(2)
    assert not ended, "the task still runs"
    stage.advance(5)
    assert ended
    assert stage.states([task]) == [("waiting", 0)]


def test_drain_ends_even_with_the_store_away(stage: Stage) -> None:
    worker = stage.worker()
    running = stage.simulate(100)
    stage.store.away = {"finish", "release", "claim", "beat", "held_by", "worker_gone", "worker_draining"}
    finishing = stage.submit(NewTask(1, "t", "echo", queue="tasks"))
    ended = stage.drain(worker, 1)
    stage.advance(10)
    assert ended
    assert stage.states([*running, *finishing]) == [("running", 1), ("queued", 0)]


@pytest.mark.parametrize(
    "broken",
    [
        "beat",
        "worker_draining",
        "release",
        "finish",
        "held_by",
        "worker_gone",
        "intake",
        "stop_all",
        "consumer",
        "runner",
    ],
)
def test_drain_takes_every_step_whatever_fails(stage: Stage, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    board = RecordingBoard()
    worker = stage.worker(board=board)
    stage.simulate(2)
    stage.simulate(100)
    stage.store.broken = {broken}
    consumer = stage.broker._queues["tasks"].consumers[0]
    places = {
        "intake": (worker.intake, "stop"),
        "stop_all": (worker.outcomes, "stop_all"),
        "consumer": (consumer, "stop"),
        "runner": (worker._runner, "stop"),
    }
    if broken in places:
        monkeypatch.setattr(*places[broken], fail_at_once)
    stage.threads.running = True
    ended = stage.drain(worker, 3)
    stage.advance(30)
    assert ended
    assert stage.threads.running is (broken == "runner"), "the runner is stopped"
    assert board.stopped is (broken != "worker_gone")
    calls = len(stage.store.calls)
    stage.advance(30)
    assert len(stage.store.calls) == calls, "nothing goes on"


def test_a_draining_worker_says_so_first_and_beats_to_its_end(stage: Stage) -> None:
    board = RecordingBoard()
    worker = stage.worker(board=board)
    stage.simulate(5)
    ended = stage.drain(worker, 10)
    assert stage.status().state is WorkerState.DRAINING and stage.worker_changes == 2
    beat = stage.status().beat
    stage.advance(3.5)
    assert stage.status().beat >= beat + 3
    assert (ended, board.stopped) == ([], False)
    stage.advance(3)
    assert (ended, board.stopped) == ([True], True)
    assert not stage.done(stage.store._store.poll_workers()).workers


def test_give_backs_of_a_stopping_worker_are_counted_and_noted_from_the_third_on(
    stage: Stage, events: list[LogEvent]
) -> None:
    [task] = stage.simulate(100)
    for n in (1, 2, 3):
        worker = stage.worker(name=f"worker {n}")
        stage.advance(0.1)
        stage.drain(worker, 0)
        assert stage.states([task]) == [("waiting", 0)] and stage.tasks([task])[0].returns == n
        assert any(f"task {task} (simulate) has been given back 3 times" in note for note in notes(events)) is (n == 3)
        assert bool(stage.outputs) is (n == 3), "the owner gets an event as well"
        stage.advance(1)
        stage.dispatch_again(task)


def test_drain_gives_back_what_it_does_not_know_as_well(stage: Stage) -> None:
    worker = stage.worker()
    [lost] = stage.done(stage.store._store.create_tasks("lost", [NewTask(1, "t", queue="tasks", state=State.QUEUED)]))
    stage.done(stage.store._store.claim("w", [Claim(lost.id, 1)]))
    assert stage.drain(worker, 1)
    assert stage.states([lost.id]) == [("waiting", 0)]


def test_hurry_ends_the_grace_time(stage: Stage) -> None:
    worker = stage.worker()
    [task] = stage.simulate(100)
    ended = stage.drain(worker, 600)
    worker.hurry()
    stage.advance(0.1)
    assert ended and stage.states([task]) == [("waiting", 0)]


def test_a_lost_channel_does_not_stop_running_tasks(stage: Stage) -> None:
    worker = stage.worker()
    [task] = stage.simulate(5)
    consumer = stage.broker._queues["tasks"].consumers[0]
    consumer.close()
    consumer.on_lost()
    # the message comes again, to the worker that already runs the task
    stage.advance(1)
    assert stage.states([task]) == [("running", 1)]
    assert worker.busy == 1 and [d.redelivered for d in consumer.unacked] == [True]
    stage.advance(5)
    assert stage.states([task]) == [("completed", 1)]
    assert not consumer.unacked and stage.depth() == 0


# -- retries


def test_a_failed_attempt_is_repeated_after_its_backoff(stage: Stage) -> None:
    stage.worker()
    [task] = stage.submit(NewTask(1, "t", "fail", queue="tasks", max_attempts=2))
    [found] = stage.tasks([task])
    assert (found.state, found.attempt, found.error) == (State.WAITING, 1, "ValueError: no such colour")
    assert (found.run_at - found.created_at).total_seconds() == pytest.approx(10, abs=1)
    assert stage.changes[-1] == (task, "waiting")
    stage.advance(10)
    assert stage.done(stage.store._store.promote(10))
    stage.dispatch_again(task)
    [found] = stage.tasks([task])
    assert (found.state, found.attempt) == (State.FAILED, 2)
    failed = stage.done(stage.store._store.failed_attempts(task))
    assert [(f.attempt, f.worker, f.error) for f in failed] == [(n, "w", "ValueError: no such colour") for n in (1, 2)]
    assert all("in fail" in (f.trace or "") for f in failed)


def test_without_max_attempts_of_the_task_those_of_the_kind_count(stage: Stage) -> None:
    stage.worker()
    [task] = stage.submit(NewTask(1, "t", "user", queue="tasks", max_attempts=0))
    assert stage.tasks([task])[0].result == '["ana","t",1,4]'
    assert stage.tasks([task])[0].max_attempts == 4


def test_an_outcome_that_cannot_be_stored_fails_the_attempt_at_once(stage: Stage, events: list[LogEvent]) -> None:
    stage.worker()
    stage.store.refuse_once("finish")
    [task] = stage.submit(NewTask(1, "t", "fail", queue="tasks", max_attempts=5))
    stage.advance(0.1)
    [found] = stage.tasks([task])
    assert (found.state, found.error) == (State.FAILED, "the error cannot be stored: RuntimeError")


# -- cancellation


def test_a_cancel_order_stops_a_cancelled_task(stage: Stage) -> None:
    worker = stage.worker()
    [task, other] = stage.simulate(100, 2)
    stage.done(stage.store._store.cancel(1, task))
    stage.broker.announce(encode(CancelOrder([task, other, 999])), ORDERS)
    stage.advance(0)
    assert worker.busy == 1
    assert stage.states([task, other]) == [("cancelled", 1), ("running", 1)]
    assert {d.task_id for d in stage.broker._queues["tasks"].consumers[0].unacked} == {other}


def test_without_the_cancel_order_a_cancelled_task_is_stopped_at_the_next_look(stage: Stage) -> None:
    worker = stage.worker()
    [task] = stage.simulate(100)
    stage.done(stage.store._store.cancel(1, task))
    stage.advance(LOOK + 1)
    assert worker.busy == 0 and stage.states([task]) == [("cancelled", 1)]


def test_an_invalid_cancel_order_is_ignored(stage: Stage) -> None:
    worker = stage.worker()
    stage.simulate(100)
    for body in (b"{}", b"\xff", b"[[1.5]]"):
        stage.broker.announce(body, ORDERS)
    stage.advance(0)
    assert worker.busy == 1


# -- output of tasks


def test_output_is_stored_and_announced_at_most_four_times_a_second(stage: Stage) -> None:
    stage.worker()
    [task] = stage.submit(NewTask(1, "t", "talk", '{"seconds":1}', "tasks"))
    stage.advance(0.1)
    [found] = stage.tasks([task])
    assert (found.progress, found.note) == (0.2, "step 2")
    assert [(e["event"], e.get("progress"), e.get("lines")) for e in stage.outputs] == [
        ("progress", 0.2, None),
        ("log", None, ["line 0", "line 1", "line 2"]),
    ]
    stage.advance(1)
    assert stage.states([task]) == [("completed", 1)]
    assert [e["lines"] for e in stage.outputs[2:]] == [["the end"]]
    chunks = stage.done(stage.store._store.read_log(task, None, 10))
    assert [(c.place.line, list(c.lines)) for c in chunks] == [(1, ["line 0", "line 1", "line 2"]), (4, ["the end"])]
    assert stage.store.calls.count("report") == 2


def test_a_log_that_is_too_long_is_cut_at_its_beginning(stage: Stage) -> None:
    """The worker keeps 2,000 bytes of it: the last lines."""
    stage.worker()
    [task] = stage.submit(NewTask(1, "t", "talk", '{"lines":1000}', "tasks"))
    stage.advance(2)
    chunks = stage.done(stage.store._store.read_log(task, None, 10_000))
    lines = [line for chunk in chunks for line in chunk.lines]
    assert lines[-1] == "the end" and "line 999" in lines
    assert stage.done(stage.store._store.log_bytes(task)) <= LOG_BYTES + 100
    assert any("left out" in line for line in lines) or chunks[0].place.line > 1


def test_reports_wait_for_a_store_that_is_away_and_the_outcome_waits_for_them(stage: Stage) -> None:
    stage.worker()
    stage.store.away = {"report"}
    [task] = stage.submit(NewTask(1, "t", "talk", '{"seconds":1}', "tasks"))
    stage.advance(3)
    assert stage.states([task]) == [("running", 1)]
    stage.store.away = set()
    stage.advance(2)
    assert stage.states([task]) == [("completed", 1)]
    chunks = stage.done(stage.store._store.read_log(task, None, 10))
    assert [line for c in chunks for line in c.lines] == ["line 0", "line 1", "line 2", "the end"]


# -- registration of workers


def test_a_worker_registers_its_kinds_and_unregisters_at_the_end(stage: Stage) -> None:
    worker = stage.worker(7)
    stage.advance(0)
    info = stage.status().info
    assert (info.name, info.slots, list(info.queues)) == ("w", {"async": 7, "thread": 0}, ["tasks"])
    kinds = {kind.kind: kind for kind in info.kinds}
    assert kinds.keys() == {"simulate", *KINDS}
    assert (kinds["fail"].isolation, kinds["fail"].max_attempts) == ("async", 4)
    assert stage.worker_changes == 1
    stage.drain(worker, 1)
    assert not stage.done(stage.store._store.poll_workers()).workers and stage.worker_changes > 1


def test_a_worker_beats_every_second_and_tells_its_watchdog(stage: Stage) -> None:
    board = RecordingBoard()
    worker = stage.worker(board=board)
    runner = worker._runner
    assert isinstance(runner, HungRunner)
    runner.slots_hung = {"thread": 2}
    beat, beats = stage.status().beat, board.beats
    stage.advance(10.5)
    assert stage.status().beat == beat + 10 and board.beats == beats + 10
    assert stage.status().hung == {"thread": 2}


@pytest.mark.parametrize("trouble", ["away", "broken"])
def test_beats_survive_any_error_and_the_log_tells_it_once(stage: Stage, events: list[LogEvent], trouble: str) -> None:
    stage.worker()
    setattr(stage.store, trouble, {"beat"})
    stage.advance(5)
    setattr(stage.store, trouble, set())
    beat = stage.status().beat
    stage.advance(2)
    assert stage.status().beat >= beat + 1
    assert len([n for n in notes(events) if "cannot tell the store that it lives" in n]) == 1


@pytest.mark.parametrize("trouble", ["away", "answer_lost"])
def test_registration_is_repeated_until_it_works_and_nothing_is_claimed_before(stage: Stage, trouble: str) -> None:
    setattr(stage.store, trouble, {"register"})
    worker = stage.worker()
    [task] = stage.simulate(1)
    stage.advance(5)
    assert stage.states([task]) == [("queued", 0)] and not worker.consuming
    setattr(stage.store, trouble, set())
    stage.advance(3)
    assert stage.states([task]) == [("completed", 1)] and worker.consuming


def test_a_worker_that_never_was_registered_drains(stage: Stage) -> None:
    stage.store.away = {"register"}
    worker = stage.worker()
    assert stage.drain(worker, 1)


def test_tasks_of_kinds_that_a_worker_does_not_serve_stay_in_their_queue(stage: Stage) -> None:
    worker = stage.worker()
    [task] = stage.submit(NewTask(1, "t", "nothing", queue="tasks"))
    stage.advance(2)
    assert worker.busy == 0 and stage.states([task]) == [("queued", 0)]
    assert stage.done(stage.broker.depth("tasks#nothing")) == 1
