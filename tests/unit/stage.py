"""A whole server in memory for the unit tests, on a clock that only the tests advance.

There is no worker: the tests hold, begin and finish tasks through the store, as a worker does.
"""

from __future__ import annotations

import itertools
import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone
from typing import Any, TypeVar

import bcrypt
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, ensureDeferred, succeed
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from taskd.api.accounts import Accounts
from taskd.api.local_users import FindName, LocalUsers
from taskd.api.login_guard import open_guard
from taskd.broker.memory import MemoryBroker
from taskd.config import ConnectionLimits
from taskd.events.publisher import changes_of
from taskd.events.records import EventBatch, log_event, progress_event
from taskd.model.quotas import Limits
from taskd.model.states import State
from taskd.model.tasks import NewTask, Route, Task
from taskd.ports.attempts import Begun, Held, Outcome
from taskd.ports.handler import ISOLATIONS
from taskd.ports.logs import Report
from taskd.ports.workers import KindInfo, WorkerInfo
from taskd.protocol.messages import encode
from taskd.scheduling.pools import WorkerPool
from taskd.server.task_server import TaskServer
from taskd.store.sqlite.database import InlineRunner
from taskd.store.sqlite.store import SqliteStore

NOON = datetime(2025, 3, 1, 12, tzinfo=timezone.utc)
PASSWORD = "correct horse"
LEASE = 30.0
SESSION = 86_400
ADMIN = "root"
OPEN = ConnectionLimits(allow_plaintext=True)

T = TypeVar("T")
R = TypeVar("R")


class StageRunner(InlineRunner):
    """A database that tests can make unavailable (``away``) or defective (``broken``). While ``slow``, each call waits
    for :meth:`run_waiting`."""

    def __init__(self) -> None:
        super().__init__()
        self.away = False
        self.broken = False
        self.slow = False
        self.calls = 0
        self._waiting: list[Callable[[], object]] = []

    def runInteraction(self, interaction: Callable[..., R], *args: Any) -> Deferred[R]:
        """Run the interaction as the base class does, unless the database is slow, away or broken."""
        if not self.slow:
            return self._run(interaction, *args)
        done: Deferred[R] = Deferred()
        self._waiting.append(lambda: self._run(interaction, *args).chainDeferred(done))
        return done

    def run_waiting(self) -> None:
        """Run the waiting calls. Calls that they cause wait in turn while the database is slow."""
        waiting, self._waiting = self._waiting, []
        for run in waiting:
            run()

    @property
    def waiting(self) -> int:
        """The number of waiting calls."""
        return len(self._waiting)

    def _run(self, interaction: Callable[..., R], *args: Any) -> Deferred[R]:
        self.calls += 1
        if self.broken:
            interaction = _broken
        elif self.away:
            interaction = _away
        return super().runInteraction(interaction, *args)


class AlwaysAvailable(InlineRunner):
    """The same database for other processes and for the tests themselves: never away, broken or slow."""

    def __init__(self, runner: InlineRunner) -> None:
        self._connection = runner._connection

    def close(self) -> None:
        """Nothing to close: the connection belongs to the other runner."""


def _away(*args: Any) -> Any:
    raise sqlite3.OperationalError("disk I/O error")


def _broken(*args: Any) -> Any:
    raise ZeroDivisionError("a defect")


class StageBroker(MemoryBroker):
    """A broker that records hints, orders and event batches. ``sent`` says in which order they were sent."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.hinted: list[str] = []
        self.ordered: list[str] = []
        self.event_batches: list[bytes] = []
        self.sent: list[str] = []

    def hint(self, workers: Iterable[str], orders: bool = False) -> None:
        workers = sorted(workers)
        if workers:
            self.sent.append("hints")
        (self.ordered if orders else self.hinted).extend(workers)
        super().hint(workers, orders)

    def announce(self, body: bytes) -> None:
        self.sent.append("events")
        self.event_batches.append(body)
        super().announce(body)


async def run_inline(function: Callable[..., Any], *args: Any) -> Any:
    """Hash in the calling thread."""
    return function(*args)


class Transport(StringTransport):
    """The server's end of a connection. While not ``reading``, its buffer fills up and pauses the producer."""

    SIZE = 65536
    reading = True

    def loseConnection(self) -> None:
        assert self.producer is None, "a real one would wait until the producer is unregistered"
        super().loseConnection()

    def abortConnection(self) -> None:
        self.disconnecting = self.disconnected = True

    def write(self, data: bytes) -> None:
        assert not self.disconnecting, "written after the connection was closed"
        super().write(data)
        if not self.reading and self.producer is not None and len(self.io.getbuffer()) > self.SIZE:
            self.producer.pauseProducing()


class Client:
    """The client's end of a connection."""

    def __init__(self, stage: Stage, host: str = "192.0.2.1", transport: Transport | None = None) -> None:
        self._stage = stage
        self._ids = itertools.count(1)
        self._kept: list[dict[str, Any]] = []
        self.transport = transport or Transport(peerAddress=IPv4Address("TCP", host, 54321))
        connection = stage.lines.buildProtocol(None)
        assert connection is not None
        self.connection = connection
        self.connection.makeConnection(self.transport)

    @property
    def closed(self) -> bool:
        """Whether the server has closed the connection."""
        return self.transport.disconnecting

    def send(self, *lines: bytes | dict[str, Any]) -> None:
        """Send these lines in one write, then run all pending work."""
        self.connection.dataReceived(b"".join((x if isinstance(x, bytes) else encode(x)) + b"\n" for x in lines))
        self._stage.run_pending()

    def raw_lines(self) -> list[bytes]:
        """The received lines, without line ends."""
        data = self.transport.value()
        self.transport.clear()
        assert data == b"" or data.endswith(b"\n")
        return data.split(b"\n")[:-1]

    def lines(self) -> list[dict[str, Any]]:
        """The replies and events received since the last call."""
        self._kept += [json.loads(line) for line in self.raw_lines()]
        kept, self._kept = self._kept, []
        return kept

    def events(self) -> list[dict[str, Any]]:
        """The received events. Replies stay for a later call."""
        lines = self.lines()
        self._kept = [line for line in lines if "event" not in line]
        return [line for line in lines if "event" in line]

    def line(self) -> dict[str, Any]:
        """The one line received."""
        [line] = self.lines()
        return line

    def start(self, action: str, **fields: Any) -> int:
        """Send a request and return its id."""
        request_id = next(self._ids)
        self.send({"action": action, "id": request_id, **fields})
        return request_id

    def reply(self, request_id: int) -> dict[str, Any]:
        """The reply to this request. Other lines stay for a later call."""
        lines = self.lines()
        [reply] = [line for line in lines if line.get("id") == request_id]
        self._kept = [line for line in lines if line is not reply]
        return reply

    def ask(self, action: str, **fields: Any) -> dict[str, Any]:
        """Send a request and return the reply."""
        return self.reply(self.start(action, **fields))

    def stop_reading(self, full: bool = True) -> None:
        """Stop reading. With ``full``, the transport's buffer is full already."""
        self.transport.reading = False
        if full:
            assert self.transport.producer is not None
            self.transport.producer.pauseProducing()

    def resume_reading(self) -> list[dict[str, Any]]:
        """Read everything sent so far, and read again from now on."""
        lines = self.lines()
        self.transport.reading = True
        if self.transport.producer is not None:
            self.transport.producer.resumeProducing()
        self._stage.run_pending()
        return lines

    @property
    def unread_bytes(self) -> int:
        """Bytes sent and not read yet."""
        return len(self.transport.io.getbuffer())

    @property
    def is_read_from(self) -> bool:
        """Whether the server reads from this client."""
        return self.transport.producerState == "producing"

    def half_close(self) -> None:
        """Close the sending side; keep reading."""
        self.connection.readConnectionLost()
        self._stage.run_pending()

    def lose_connection(self) -> None:
        """Lose the connection."""
        self.connection.connectionLost(Failure(ConnectionDone()))
        self._stage.run_pending()


class _WallClock:
    """The store's time: noon at first."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._noon = clock.seconds()

    def __call__(self) -> float:
        return NOON.timestamp() + self._clock.seconds() - self._noon


class Stage:
    """A server in memory, without its periodic work: only clients and tests make something happen. ``guesses`` are the
    limits of :func:`open_guard`: none, unless a test sets them. With ``find_name``, users of the machine log in without
    a password."""

    def __init__(
        self,
        queues: Sequence[str] = ("tasks",),
        run_hash: Any = run_inline,
        keep: float = 0.0,
        limits: ConnectionLimits = OPEN,
        threads: int = 100,
        quotas: Limits | None = None,
        rounds: int = 4,
        find_name: FindName | None = None,
        admin_totp: bool = False,
        **guesses: int,
    ) -> None:
        # timers run by another clock than the store: whoever takes the one for the other is an age off
        self.clock = clock = Clock()
        clock.advance(1000.0)
        self.clock_ahead = 0.0
        """Seconds by which the clock of the server's machine is ahead of the store's."""
        wall = _WallClock(clock)
        self.runner = StageRunner()
        self.store = store = SqliteStore(self.runner, clock, wall)
        self.broker = broker = StageBroker(clock)
        self.other_store = SqliteStore(AlwaysAvailable(self.runner), clock, wall)
        for start in (self.other_store.start(), store.start(), broker.start()):
            now(start)
        guard = open_guard(clock, store, run_hash, threads, **guesses)
        local = LocalUsers(store, guard, find_name, [ADMIN]) if find_name is not None else None
        self.accounts = Accounts(
            store,
            guard,
            rounds,
            SESSION,
            admins=[ADMIN],
            local=local,
            admin_totp=admin_totp,
            wall=lambda: wall() + self.clock_ahead,
        )
        self.server = TaskServer(
            clock,
            store,
            broker,
            self.accounts,
            queues=queues,
            lease=LEASE,
            node="host1:4711:9ec0ebeb",
            keep=keep,
            limits=limits,
            quotas=quotas,
        )
        self.hub, self.publisher, self.api = self.server.hub, self.server.publisher, self.server.api
        self.lines = self.server.lines
        scheduler = self.server.scheduler
        self.pools, self.dispatcher = scheduler.pools, scheduler.dispatcher
        self.submitter, self.maintenance = scheduler.submitter, scheduler.maintenance
        self.liveness = scheduler.liveness
        self.server.subscriber.start(store.installation)

    def drain(self) -> None:
        """Start draining the server."""
        self.api.drain()
        self.lines.drain()

    def close(self) -> None:
        """Close the database."""
        self.runner.close()

    def now(self) -> datetime:
        """The store's time."""
        return self.store.now()

    def run_pending(self) -> None:
        """Run everything that is due now."""
        self.clock.advance(0)

    def pass_time(self, seconds: float = 0.1, step: float = 0.05) -> None:
        """Let time pass, in small steps."""
        for _ in range(round(seconds / step)):
            self.clock.advance(step)

    def draw_ids(self) -> None:
        """Have the server know ids for new tasks already, as after its first creation, and what its users have used of
        their quotas."""
        self.submitter.ids.add(now(self.other_store.draw_ids(100)))
        for (user_id,) in self.sql("SELECT id FROM users"):
            ensureDeferred(self.server.scheduler.quotas.reopen(user_id, lambda: succeed(None)))
        self.run_pending()

    def timers(self) -> list[Any]:
        """What is still to happen by time. Without what users have used, which is stored within a second."""
        return [call for call in self.clock.getDelayedCalls() if "UsageLog" not in str(call)]

    def run_maintenance(self) -> None:
        """Poll the workers, then run one round of maintenance."""
        self.liveness.on_event()
        now(self.maintenance.round())
        self.run_pending()

    def pool(self, queue: str = "tasks", kind: str = "simulate") -> WorkerPool:
        """The only pool that serves this route."""
        [pool] = self.pools.by_route[Route(queue, kind)]
        return pool

    # workers

    def add_worker(
        self,
        *kinds: str | KindInfo,
        name: str = "w",
        queues: Sequence[str] = ("tasks",),
        slots: int = 4,
        announced: bool = True,
    ) -> None:
        """Register a worker that serves these kinds, or the default kind if none is given. It has so many slots for
        each isolation."""
        infos = [KindInfo(kind, "async") if isinstance(kind, str) else kind for kind in kinds or ("simulate",)]
        self.sql("DELETE FROM workers WHERE name = ?", name)
        now(self.other_store.register(WorkerInfo(name, list(queues), infos, dict.fromkeys(ISOLATIONS, slots))))
        if announced:
            self.announce_workers()

    def change_worker(self, name: str = "w", **columns: Any) -> None:
        """Write into the record of a worker, as its watchdog does, and have this server see it."""
        for column, value in columns.items():
            self.sql(f"UPDATE workers SET {column} = ? WHERE name = ?", value, name)
        self.announce_workers()

    def remove_worker(self, name: str = "w") -> None:
        """Unregister a worker."""
        now(self.other_store.worker_gone(name))
        self.announce_workers()

    def announce_workers(self) -> None:
        """Announce that a worker has started or stopped."""
        self.broker.announce(encode(EventBatch(self.store.installation, "worker", workers=True)))
        self.run_pending()

    def announce_routes(self, *routes: tuple[str, str]) -> None:
        """Announce that there is something to do in these routes."""
        self.broker.announce(encode(EventBatch(self.store.installation, "other", routes=routes)))
        self.run_pending()

    def report(
        self, task: Task | int, *lines: str, first_line: int = 1, keep_from: int = 1, progress: float | None = None
    ) -> None:
        """Store and announce output of a running task, as its worker does."""
        [it] = self.tasks(task)
        report = Report(it.id, it.dispatch, it.attempt, progress, None, first_line, lines, keep_from)
        assert it.id in now(self.other_store.report(it.worker or "", [report]))
        outputs = [] if progress is None else [progress_event(it, progress, None)]
        if lines:
            outputs.append(log_event(it, first_line, lines, self.now()))
        self.broker.announce(encode(EventBatch(self.store.installation, "worker", outputs=outputs)))
        self.run_pending()

    # users and tasks, without the protocol

    def user_id(self, name: str = "ana") -> int:
        """The id of a user, who is created if needed."""
        found = now(self.other_store.find_user(name))
        return found.user.id if found else now(self.other_store.create_user(name, name, "no hash")).id

    def create(self, name: str = "ana", count: int = 1, worker: str | None = None, **spec: Any) -> list[Task]:
        """Create tasks of a user in the store, as another server does, held by this worker if one is given: this server
        gets no event of it."""
        self._register(worker)
        spec = {"task": "t", "queue": "tasks", "worker": worker, **spec}
        ids = now(self.other_store.draw_ids(count))
        tasks = [NewTask(self.user_id(name), **spec, id=n) for n in ids]
        return list(now(self.other_store.create_tasks(tasks)).tasks)

    def hold(self, *tasks: Task | int, worker: str = "w") -> list[Task]:
        """Have a worker hold these tasks, which wait, and announce it, as another server does. A worker that is not
        known is registered, serving nothing."""
        self._register(worker)
        for task in self.tasks(*tasks):
            assert task.state is State.WAITING
            self.sql(
                "UPDATE tasks SET state = 'queued', held = 1, worker = ?, dispatch = dispatch + 1,"
                " attempt = attempt + 1, version = version + 1, error = NULL,"
                " max_attempts = CASE max_attempts WHEN 0 THEN 3 ELSE max_attempts END WHERE id = ?",
                worker,
                task.id,
            )
        return self.announce(self.tasks(*tasks))

    def begin(self, *tasks: Task | int, worker: str = "w") -> list[Task]:
        """Have tasks run, on this worker if they wait, and announce it, as a worker does."""
        for task in self.tasks(*tasks):
            if task.state is State.WAITING:
                [task] = self.hold(task, worker=worker)
            now(self.other_store.begin(task.worker or "", [Begun(task.id, task.dispatch)], flush=False))
        return self.announce(self.tasks(*tasks))

    def release(self, *tasks: Task | int) -> None:
        """Give tasks back, or confirm that they were dropped, and announce it, as a worker does."""
        for task in self.tasks(*tasks):
            self.announce(now(self.other_store.release(task.worker or "", [Held(task.id, task.dispatch)])))

    def finish(
        self,
        *tasks: Task | int,
        state: State = State.COMPLETED,
        result: str | None = "1",
        error: str | None = None,
        trace: str | None = None,
        delay: float = 0.0,
    ) -> list[Task]:
        """Finish tasks that a worker holds with this outcome, and announce it."""
        for t in self.tasks(*tasks):
            end = Outcome(t.id, t.dispatch, t.attempt, state, result, error, trace, delay)
            assert t.id in now(self.other_store.finish(t.worker or "", [end]))
        return self.announce(self.tasks(*tasks))

    def run(self, *tasks: Task | int, **outcome: Any) -> list[Task]:
        """Begin and finish tasks."""
        self.begin(*tasks)
        return self.finish(*tasks, **outcome)

    def announce(self, tasks: Sequence[Task]) -> list[Task]:
        """Announce changes of tasks, as a worker does. Returns the tasks."""
        self.broker.announce(encode(EventBatch(self.store.installation, "worker", changes_of(tasks, self.now()))))
        self.run_pending()
        return list(tasks)

    def tasks(self, *tasks: Task | int) -> list[Task]:
        """The present rows of these tasks, in this order; of all tasks if none is given."""
        ids = [task if isinstance(task, int) else task.id for task in tasks]
        users = self.sql("SELECT id FROM users")
        found = {}
        for (user_id,) in users:
            wanted = ids or [n for (n,) in self.sql("SELECT id FROM tasks WHERE user_id = ?", user_id)]
            found.update({task.id: task for task in now(self.other_store.get_tasks(user_id, wanted))})
        return [found[task_id] for task_id in ids or sorted(found)]

    def states(self, *tasks: Task | int) -> list[str]:
        """The present states of these tasks."""
        return [task.state.value for task in self.tasks(*tasks)]

    def sql(self, text: str, *args: Any) -> list[Any]:
        """The rows of a query."""
        return now(InlineRunner.runInteraction(self.runner, lambda cursor: cursor.execute(text, args).fetchall()))

    def _register(self, worker: str | None) -> None:
        if worker is not None:
            now(self.other_store.register(WorkerInfo(worker, [], [], {})))

    # connections

    def connect(self, host: str = "192.0.2.1") -> Client:
        """A new connection from this address."""
        return Client(self, host)

    def client(self, name: str = "ana") -> Client:
        """A connection logged in as this user, who is registered if needed."""
        client = self.connect()
        client.ask("register", username=name, password=PASSWORD)
        assert client.ask("login", username=name, password=PASSWORD)["ok"]
        return client

    def admin(self) -> Client:
        """A connection logged in as the admin, who was registered before the settings had the name."""
        secret = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
        now(self.other_store.create_user(ADMIN, ADMIN, secret))
        client = self.connect()
        assert client.ask("login", username=ADMIN, password=PASSWORD)["ok"]
        return client


def now(awaitable: Any) -> Any:
    """The result of an awaitable that must not need to wait. Raises what it failed with."""
    results: list[Any] = []
    deferred = awaitable if isinstance(awaitable, Deferred) else ensureDeferred(awaitable)
    deferred.addBoth(results.append)
    assert results, "the awaitable is still waiting"
    if isinstance(results[0], Failure):
        results[0].raiseException()
    return results[0]


class StageCase(SynchronousTestCase):
    """A test with a stage. It fails if an error is logged that the test does not flush."""

    queues: Sequence[str] = ("tasks",)

    def setUp(self) -> None:
        self.stage = Stage(self.queues)
        self.addCleanup(self.stage.close)

    def assertRefused(self, reply: dict[str, Any], code: str, field: str | None = None) -> None:
        """Assert that the reply is an error with this code and field, and has a message."""
        self.assertEqual((reply["ok"], reply.get("code"), reply.get("field")), (False, code, field), reply)
        self.assertGreater(len(reply["message"]), 10)
