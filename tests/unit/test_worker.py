"""The worker, with a store and a broker in memory, on a clock that only the tests advance."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from msgspec.structs import replace
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, deferLater
from zope.interface import implementer
from zope.interface.verify import verifyObject

from taskd.broker.memory import MemoryBroker
from taskd.events.records import CancelOrder, decode_batch
from taskd.model.backoff import Backoff
from taskd.model.errors import Unavailable
from taskd.model.limits import MAX_RESULT_BYTES
from taskd.model.states import State
from taskd.model.tasks import NewTask, Task
from taskd.ports.attempts import Claim, Outcome
from taskd.ports.broker import ORDERS
from taskd.ports.handler import ITaskContext, ITaskHandler
from taskd.ports.scheduling import Dispatch
from taskd.ports.store import IStore
from taskd.protocol.messages import encode
from taskd.store.sqlite.database import InlineRunner
from taskd.store.sqlite.store import SqliteStore
from taskd.worker.leases import ACK_AFTER
from taskd.worker.runner import Runner
from taskd.worker.simulate import Simulate
from taskd.worker.worker import Worker

LEASE = 30.0
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
    """A store whose methods fail: those in ``away`` without an effect, those in ``answer_lost`` after they are done."""

    def __init__(self, store: IStore) -> None:
        self._store = store
        self.away: set[str] = set()
        self.answer_lost: set[str] = set()
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if not callable(method):
            return method

        async def call(*args: Any) -> Any:
            self.calls.append(name)
            if name in self.away:
                raise Unavailable("away")
            result = await method(*args)
            if name in self.answer_lost:
                raise Unavailable("the answer is lost")
            return result

        return call


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

    def worker(self, slots: int = 10, name: str = "w") -> Worker:
        """Start another worker."""
        handlers = [Simulate(self.clock), *(Handler(kind, f, self.clock) for kind, f in KINDS.items())]
        worker = Worker(
            self.clock,
            self.store,  # type: ignore[arg-type]
            self.broker,
            Runner(self.clock, handlers),
            ["tasks"],
            {"async": slots},
            LEASE,
            name,
            log_bytes=LOG_BYTES,
        )
        self.done(worker.start())
        return worker

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
        tasks = self.done(self.store._store.dispatch(f"again {ids}", self.tasks(ids[:1])[0].route, 100, None)).tasks
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


def test_another_worker_takes_over_the_tasks_of_a_dead_one(stage: Stage) -> None:
    stage.worker(name="first")
    ids = stage.simulate(3, 4)
    # The first worker dies: its channel closes, and it does nothing more.
    first = stage.broker._queue("tasks").consumers.pop()
    first.ready = False
    stage.worker(name="second")
    first.close()
    stage.advance(4)
    assert stage.states(ids) == [("completed", 2)] * 4


def test_the_end_of_a_task_is_announced_by_another_worker_if_its_own_died_first(stage: Stage) -> None:
    [task] = stage.simulate(3)
    delivered: list[Any] = []
    dead = stage.broker.consume("tasks", 1, delivered.extend, lambda: None)
    stage.advance(0)
    [claimed] = stage.done(stage.store._store.claim("dead", LEASE, [Claim(task, 1, False)]))
    outcome = Outcome(task, 1, claimed.attempt, State.COMPLETED, "1")
    stage.done(stage.store._store.finish("dead", [outcome]))
    stage.done(dead.stop())
    dead.close()
    stage.worker()
    stage.advance(0)
    assert (stage.changes, stage.depth(), stage.states([task])) == ([(task, "completed")], 0, [("completed", 1)])


def test_the_first_holder_of_a_task_that_was_taken_over_is_fenced(stage: Stage) -> None:
    worker = stage.worker()
    [task] = stage.simulate(3)
    taken = stage.done(stage.store._store.claim("other", LEASE, [Claim(task, 1, True)]))
    assert [t.attempt for t in taken] == [2]
    stage.advance(3)
    assert stage.states([task]) == [("running", 2)]
    assert (worker.busy, stage.depth()) == (0, 0)


def test_a_claim_that_a_database_crash_undid_is_repeated(stage: Stage) -> None:
    worker = stage.worker()
    undo = "UPDATE tasks SET state = 'queued', attempt = 0, version = 1, worker = NULL, lease_until = NULL"
    [short, long] = [*stage.simulate(3), *stage.simulate(100)]
    stage.sql(undo)
    stage.advance(4)
    assert stage.states([short, long]) == [("completed", 1), ("queued", 0)]
    stage.advance(LEASE / 3)
    assert stage.states([short, long]) == [("completed", 1), ("running", 1)] and worker.busy == 1
    stage.advance(100)
    assert stage.states([short, long]) == [("completed", 1)] * 2


def test_last_attempts_run_one_at_a_time(stage: Stage) -> None:
    """One of them may have killed its workers. If it does so again, it must not end another last attempt."""
    ids = stage.simulate(50, 4)
    for name in ("first", "second"):
        worker = stage.worker(name=name)
        stage.advance(0.1)
        consumer = stage.broker._queue("tasks").consumers.pop()
        consumer.ready = False
        worker.leases.stop()
        worker.intake._giving_back.stop()
        for held in tuple(worker.held.running.values()):
            assert held.attempt is not None
            held.attempt.stop()
        consumer.close()
    assert stage.states(ids) == [("running", 2)] * 4
    stage.worker(name="third")
    [fresh] = stage.simulate(1)
    stage.advance(2)
    assert sorted(attempt for _, attempt in stage.states(ids)) == [2, 2, 2, 3]
    assert stage.states([fresh]) == [("completed", 1)]
    stage.advance(60)
    assert sorted(stage.states(ids))[0] == ("completed", 3)
    assert [s for s in stage.states(ids) if s == ("running", 3)] == [("running", 3)]
    stage.advance(200)
    assert stage.states(ids) == [("completed", 3)] * 4


def test_leases_are_renewed_and_tasks_with_lost_leases_are_stopped(stage: Stage) -> None:
    worker = stage.worker()
    ids = stage.simulate(200, 2)
    stage.advance(100)
    assert stage.done(stage.store._store.expire_leases(10)) == []
    stage.done(stage.store._store.claim("other", LEASE, [Claim(ids[0], 1, True)]))
    stage.advance(LEASE / 3 + 1)
    assert worker.busy == 1


def test_a_long_task_is_acked_early(stage: Stage) -> None:
    stage.worker(1)
    [task, second] = stage.simulate(2 * ACK_AFTER, 2)
    held = stage.broker._queue("tasks").consumers[0].unacked
    stage.advance(ACK_AFTER - 60)
    assert [d.task_id for d in held] == [task]
    stage.advance(120)
    # the broker delivers the next message in its place, which waits for a slot
    assert [d.task_id for d in held] == [second]
    assert stage.states([task, second]) == [("running", 1), ("queued", 0)]
    stage.advance(ACK_AFTER)
    assert stage.states([task, second]) == [("completed", 1), ("running", 1)]


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
    assert len(stage.broker._queue("tasks").consumers[0].unacked) == 3, "nothing is acked before its outcome is stored"
    setattr(stage.store, trouble, set())
    stage.advance(1.5)
    assert stage.states(ids) == [("completed", 1)] * 3
    assert (worker.busy, len(stage.broker._queue("tasks").consumers[0].unacked)) == (0, 0)
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
    assert stage.depth() == 0 and not stage.broker._queue("tasks").consumers[0].unacked
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
    stage.store.away = {"finish", "release", "claim", "renew"}
    finishing = stage.submit(NewTask(1, "t", "echo", queue="tasks"))
    ended = stage.drain(worker, 1)
    stage.advance(10)
    assert ended
    assert stage.states([*running, *finishing]) == [("running", 1), ("queued", 0)]


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
    consumer = stage.broker._queue("tasks").consumers[0]
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


def test_last_attempts_of_tasks_that_only_failed_run_together(stage: Stage) -> None:
    stage.worker()
    ids = stage.submit(*[NewTask(1, "t", "fail", queue="tasks", max_attempts=2)] * 3)
    stage.advance(10)
    stage.done(stage.store._store.promote(10))
    stage.store.calls.clear()
    stage.dispatch_again(*ids)
    assert stage.states(ids) == [("failed", 2)] * 3
    assert stage.store.calls.count("claim") == 1


# -- cancellation


def test_a_cancel_order_stops_a_cancelled_task(stage: Stage) -> None:
    worker = stage.worker()
    [task, other] = stage.simulate(100, 2)
    stage.done(stage.store._store.cancel(1, task))
    stage.broker.announce(encode(CancelOrder([task, other, 999])), ORDERS)
    stage.advance(0)
    assert worker.busy == 1
    assert stage.states([task, other]) == [("cancelled", 1), ("running", 1)]
    assert {d.task_id for d in stage.broker._queue("tasks").consumers[0].unacked} == {other}


def test_without_the_cancel_order_a_cancelled_task_is_stopped_at_the_next_renewal(stage: Stage) -> None:
    worker = stage.worker()
    [task] = stage.simulate(100)
    stage.done(stage.store._store.cancel(1, task))
    stage.advance(LEASE / 3 + 1)
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
    [info] = stage.done(stage.store._store.list_workers(LEASE))
    assert (info.name, info.slots, list(info.queues)) == ("w", 7, ["tasks"])
    kinds = {kind.kind: kind for kind in info.kinds}
    assert kinds.keys() == {"simulate", *KINDS}
    assert (kinds["fail"].isolation, kinds["fail"].max_attempts) == ("async", 4)
    assert stage.worker_changes == 1
    stage.advance(3 * LEASE)
    assert [w.name for w in stage.done(stage.store._store.list_workers(LEASE / 2))] == ["w"], (
        "it renews its registration"
    )
    stage.drain(worker, 1)
    assert not stage.done(stage.store._store.list_workers(LEASE)) and stage.worker_changes == 2


def test_tasks_of_kinds_that_a_worker_does_not_serve_stay_in_their_queue(stage: Stage) -> None:
    worker = stage.worker()
    [task] = stage.submit(NewTask(1, "t", "nothing", queue="tasks"))
    stage.advance(2)
    assert worker.busy == 0 and stage.states([task]) == [("queued", 0)]
    assert stage.done(stage.broker.depth("tasks#nothing")) == 1
