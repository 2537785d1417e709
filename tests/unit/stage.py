"""The stage on which the server's unit tests play: all its rooms in memory, under a clock that stands still.

There is no worker: tests take deliveries, claim and finish through the broker and the store, as a worker would.
"""

from __future__ import annotations

import itertools
import json
import sqlite3
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from taskd.api.accounts import Accounts
from taskd.broker.memory import MemoryBroker
from taskd.events.publisher import changes_of
from taskd.events.records import EventBatch, decode_cancel_order, log_event, progress_event
from taskd.model.states import State
from taskd.model.tasks import NewTask, Route, Task
from taskd.ports.attempts import Claim, Outcome
from taskd.ports.broker import CHANGES, Delivery
from taskd.ports.logs import Report
from taskd.ports.scheduling import Dispatch
from taskd.ports.workers import KindInfo, WorkerInfo
from taskd.protocol.messages import encode
from taskd.scheduling.window import Window
from taskd.server.service import TaskServer
from taskd.store.sqlite.database import InlineRunner
from taskd.store.sqlite.store import SqliteStore

NOON = datetime(2025, 3, 1, 12, tzinfo=timezone.utc)
PASSWORD = "correct horse"
LEASE = 30.0
SESSION = 86_400

T = TypeVar("T")
R = TypeVar("R")


class StageRunner(InlineRunner):
    """A database that may be away, or keep its callers waiting while ``slow``."""

    def __init__(self) -> None:
        super().__init__()
        self.away = False
        self.broken = False
        self.slow = False
        self.calls = 0
        self._waiting: list[Callable[[], object]] = []

    def runInteraction(self, interaction: Callable[..., R], *args: Any) -> Deferred[R]:
        """As the base does it, but not always, and not always now."""
        if not self.slow:
            return self._run(interaction, *args)
        done: Deferred[R] = Deferred()
        self._waiting.append(lambda: self._run(interaction, *args).chainDeferred(done))
        return done

    def go_on(self) -> None:
        """Do what has been waiting; what follows from it waits again, as long as it is slow."""
        waiting, self._waiting = self._waiting, []
        for run in waiting:
            run()

    @property
    def waiting(self) -> int:
        """How many statements are waiting."""
        return len(self._waiting)

    def _run(self, interaction: Callable[..., R], *args: Any) -> Deferred[R]:
        self.calls += 1
        if self.broken:
            interaction = _broken
        elif self.away:
            interaction = _away
        return super().runInteraction(interaction, *args)


class Direct(InlineRunner):
    """The same database for everybody else: it is never away, and never slow."""

    def __init__(self, runner: InlineRunner) -> None:
        self._connection = runner._connection

    def close(self) -> None:
        """Nothing: it is not ours."""


def _away(*args: Any) -> Any:
    raise sqlite3.OperationalError("disk I/O error")


def _broken(*args: Any) -> Any:
    raise ZeroDivisionError("a defect")


class StageBroker(MemoryBroker):
    """A broker that notes what was published and announced, and every queue that was named. While ``mute`` it takes
    messages and confirms nothing."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.published: list[Dispatch] = []
        self.news: list[bytes] = []
        self.orders: list[list[int]] = []
        self.names: set[str] = set()
        self.log: list[str] = []
        self.mute = False
        self._unconfirmed: list[Deferred[None]] = []

    async def publish(self, queue: str, messages: Sequence[Dispatch]) -> None:
        self.names.add(queue)
        await super().publish(queue, messages)
        self.log.append("messages")
        self.published += messages
        if self.mute:
            confirmed: Deferred[None] = Deferred()
            self._unconfirmed.append(confirmed)
            await confirmed

    def confirm(self, error: Exception | None = None) -> None:
        """Confirm what was kept waiting, or fail it."""
        unconfirmed, self._unconfirmed = self._unconfirmed, []
        for confirmed in unconfirmed:
            if error is None:
                confirmed.callback(None)
            else:
                confirmed.errback(error)

    def announce(self, news: bytes, topic: str = CHANGES) -> None:
        if topic == CHANGES:
            self.log.append("news")
            self.news.append(news)
        else:
            self.orders.append(list(decode_cancel_order(news).task_ids))
        super().announce(news, topic)

    async def depth(self, queue: str) -> int:
        self.names.add(queue)
        return await super().depth(queue)


async def at_once(function: Callable[..., Any], *args: Any) -> Any:
    """Runs a hash where it is asked for."""
    return function(*args)


class Transport(StringTransport):
    """The server's end of a connection. While the peer does ``not reading`` it fills up like a real one."""

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
    """One connection, seen from the client's end."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._ids = itertools.count(1)
        self._kept: list[dict[str, Any]] = []
        self.transport = Transport()
        connection = stage.lines.buildProtocol(None)
        assert connection is not None
        self.connection = connection
        self.connection.makeConnection(self.transport)

    @property
    def closed(self) -> bool:
        """Whether the server has closed it."""
        return self.transport.disconnecting

    def send(self, *lines: bytes | dict[str, Any]) -> None:
        """Send lines, all in one piece, and let happen what needs no time."""
        self.connection.dataReceived(b"".join((x if isinstance(x, bytes) else encode(x)) + b"\n" for x in lines))
        self._stage.settle()

    def raw(self) -> list[bytes]:
        """The lines that have come, without their ends."""
        data = self.transport.value()
        self.transport.clear()
        assert data == b"" or data.endswith(b"\n")
        return data.split(b"\n")[:-1]

    def lines(self) -> list[dict[str, Any]]:
        """Replies and events that have come and were not taken yet."""
        self._kept += [json.loads(line) for line in self.raw()]
        kept, self._kept = self._kept, []
        return kept

    def events(self) -> list[dict[str, Any]]:
        """The events among them; replies stay."""
        lines = self.lines()
        self._kept = [line for line in lines if "event" not in line]
        return [line for line in lines if "event" in line]

    def line(self) -> dict[str, Any]:
        """The one that has come."""
        [line] = self.lines()
        return line

    def start(self, action: str, **fields: Any) -> int:
        """Send a request and return its id."""
        request_id = next(self._ids)
        self.send({"action": action, "id": request_id, **fields})
        return request_id

    def reply(self, request_id: int) -> dict[str, Any]:
        """The reply to it; what came beside it stays."""
        lines = self.lines()
        [reply] = [line for line in lines if line.get("id") == request_id]
        self._kept = [line for line in lines if line is not reply]
        return reply

    def ask(self, action: str, **fields: Any) -> dict[str, Any]:
        """Send a request and return the reply."""
        return self.reply(self.start(action, **fields))

    def stop_reading(self, full: bool = True) -> None:
        """Read nothing from now on; with ``full`` the transport's buffer is full already."""
        self.transport.reading = False
        if full:
            assert self.transport.producer is not None
            self.transport.producer.pauseProducing()

    def read_on(self) -> list[dict[str, Any]]:
        """Read everything up to now, and go on reading."""
        lines = self.lines()
        self.transport.reading = True
        if self.transport.producer is not None:
            self.transport.producer.resumeProducing()
        self._stage.settle()
        return lines

    @property
    def unread(self) -> int:
        """Bytes that wait for it."""
        return len(self.transport.io.getbuffer())

    @property
    def is_read(self) -> bool:
        """Whether the server reads what it sends."""
        return self.transport.producerState == "producing"

    def half_close(self) -> None:
        """Send no more, but read on."""
        self.connection.readConnectionLost()
        self._stage.settle()

    def lose(self) -> None:
        """The connection is gone."""
        self.connection.connectionLost(Failure(ConnectionDone()))
        self._stage.settle()


class Stage:
    """A server in memory, not started: nothing happens by itself but what clients and tests cause."""

    def __init__(
        self, queues: Sequence[str] = ("tasks",), window: int = 2000, run_hash: Any = at_once, keep: float = 0.0
    ) -> None:
        self.clock = clock = Clock()
        clock.advance(NOON.timestamp())
        self.runner = StageRunner()
        self.store = store = SqliteStore(self.runner, clock)
        self.broker = broker = StageBroker(clock)
        self.elsewhere = SqliteStore(Direct(self.runner), clock)
        for start in (self.elsewhere.start(), store.start(), broker.start()):
            now(start)
        self.accounts = Accounts(store, run_hash, 4, SESSION)
        self.server = TaskServer(
            clock,
            store,
            broker,
            self.accounts,
            queues=queues,
            window=window,
            lease=LEASE,
            node="node",
            new_id=self.new_id,
            keep=keep,
        )
        self.hub, self.publisher, self.api = self.server.hub, self.server.publisher, self.server.api
        self.lines = self.server.lines
        scheduler = self.server.scheduler
        self.windows, self.outbox, self.routes = scheduler.windows, scheduler.outbox, scheduler.routes
        self.submitter, self.maintenance = scheduler.submitter, scheduler.maintenance
        self.server.subscriber.start()
        self._ids = itertools.count(1)

    def drain(self) -> None:
        """The server begins to stop."""
        self.api.drain()
        self.lines.drain()

    def close(self) -> None:
        """Forget the database."""
        self.runner.close()

    def new_id(self) -> str:
        """A name for a batch, in the form of a UUID."""
        return f"00000000-0000-0000-0000-{next(self._ids):012}"

    def now(self) -> datetime:
        """The clock's time."""
        return datetime.fromtimestamp(self.clock.seconds(), timezone.utc)

    def settle(self) -> None:
        """Let everything happen that needs no time."""
        self.clock.advance(0)

    def know(self) -> Stage:
        """With windows that know their backlog, as after the first round of a server's life."""
        self.routes.tick()
        self.settle()
        return self

    def round(self) -> None:
        """One round of maintenance."""
        now(self.maintenance.round())
        self.settle()

    def window(self, queue: str = "tasks", kind: str = "simulate") -> Window:
        """The window of a route that is open."""
        return self.windows.by_route[Route(queue, kind)]

    # workers

    def work(self, *kinds: str | KindInfo, name: str = "w", queues: Sequence[str] = ("tasks",), slots: int = 4) -> None:
        """A worker says that it lives, and what it serves: the default kind when nothing is named."""
        infos = [KindInfo(kind, "async") if isinstance(kind, str) else kind for kind in kinds or ("simulate",)]
        now(self.elsewhere.worker_seen(WorkerInfo(name, list(queues), infos, slots)))
        self.tell_of_workers()

    def leave(self, name: str = "w") -> None:
        """A worker stops."""
        now(self.elsewhere.worker_gone(name))
        self.tell_of_workers()

    def tell_of_workers(self) -> None:
        """News that one has come or gone."""
        self.broker.announce(encode(EventBatch("worker", workers=True)))
        self.settle()

    def say(
        self, task: Task | int, *lines: str, first_line: int = 1, keep_from: int = 1, progress: float | None = None
    ) -> None:
        """What a running task says: stored, and told."""
        [it] = self.tasks(task)
        report = Report(it.id, it.dispatch, it.attempt, progress, None, first_line, lines, keep_from)
        assert it.id in now(self.elsewhere.report("w", [report]))
        said = [] if progress is None else [progress_event(it, progress, None)]
        if lines:
            said.append(log_event(it, first_line, lines, self.now()))
        self.broker.announce(encode(EventBatch("worker", outputs=said)))
        self.settle()

    # users and tasks, past the protocol

    def user(self, name: str = "ana") -> int:
        """The number of a user who is there or is made."""
        found = now(self.elsewhere.find_user(name))
        return found.user.id if found else now(self.elsewhere.create_user(name, name, "no hash")).id

    def create(
        self, name: str = "ana", count: int = 1, state: State = State.QUEUED, settled: bool = True, **spec: Any
    ) -> list[Task]:
        """Tasks of a user, as another server might have made them: nothing of it is known here."""
        row = NewTask(self.user(name), **{"task": "t", "queue": "tasks", **spec}, state=state)
        batch = self.new_id()
        tasks = now(self.elsewhere.create_tasks(batch, [row] * count))
        if settled:
            now(self.elsewhere.mark_published([batch]))
        return list(tasks)

    def claim(self, *tasks: Task | int, worker: str = "w") -> list[Task]:
        """What a worker does with its deliveries."""
        claims = [Claim(task.id, task.dispatch, False) for task in self.tasks(*tasks)]
        return self.tell(now(self.elsewhere.claim(worker, LEASE, claims)))

    def finish(
        self,
        *tasks: Task | int,
        state: State = State.COMPLETED,
        result: str | None = "1",
        error: str | None = None,
        trace: str | None = None,
        delay: float = 0.0,
        worker: str = "w",
    ) -> list[Task]:
        """Tasks that run come to their end."""
        ends = [Outcome(t.id, t.dispatch, t.attempt, state, result, error, trace, delay) for t in self.tasks(*tasks)]
        now(self.elsewhere.finish(worker, ends))
        return self.tell(self.tasks(*tasks))

    def run(self, *tasks: Task | int, **outcome: Any) -> list[Task]:
        """Claim and finish."""
        self.claim(*tasks)
        return self.finish(*tasks, **outcome)

    def tell(self, tasks: Sequence[Task]) -> list[Task]:
        """A worker's news."""
        self.broker.announce(encode(EventBatch("worker", changes_of(tasks, self.now()))))
        self.settle()
        return list(tasks)

    def tasks(self, *tasks: Task | int) -> list[Task]:
        """The tasks as they are now, in this order; all there are when none is named."""
        ids = [task if isinstance(task, int) else task.id for task in tasks]
        users = self.sql("SELECT id FROM users")
        found = {}
        for (user_id,) in users:
            wanted = ids or [n for (n,) in self.sql("SELECT id FROM tasks WHERE user_id = ?", user_id)]
            found.update({task.id: task for task in now(self.elsewhere.get_tasks(user_id, wanted))})
        return [found[task_id] for task_id in ids or sorted(found)]

    def states(self, *tasks: Task | int) -> list[str]:
        """Only their states."""
        return [task.state.value for task in self.tasks(*tasks)]

    def outbox_rows(self) -> int:
        """Rows that are not settled."""
        [(count,)] = self.sql("SELECT count(*) FROM outbox WHERE coalesce(published_at, 0) < 4611686018427387904")
        return int(count)

    def sql(self, text: str, *args: Any) -> list[Any]:
        """What the database says."""
        return now(InlineRunner.runInteraction(self.runner, lambda cursor: cursor.execute(text, args).fetchall()))

    def consume(self, queue: str = "tasks", prefetch: int = 10_000) -> list[Delivery]:
        """A list that fills with the deliveries of a queue."""
        taken: list[Delivery] = []
        self.broker.consume(queue, prefetch, taken.extend, lambda: None)
        self.settle()
        return taken

    def lose_messages(self, queue: str = "tasks") -> None:
        """What is in the queue is gone, and nobody has seen it."""
        taken: list[Delivery] = []
        consumer = self.broker.consume(queue, 10_000, taken.extend, lambda: None)
        self.settle()
        consumer.ack(taken)
        now(consumer.stop())

    # connections

    def connect(self) -> Client:
        """Somebody connects."""
        return Client(self)

    def client(self, name: str = "ana") -> Client:
        """A connection that is logged in as this user, who is registered if need be."""
        client = self.connect()
        client.ask("register", username=name, password=PASSWORD)
        assert client.ask("login", username=name, password=PASSWORD)["ok"]
        return client


def now(awaitable: Any) -> Any:
    """The result of what should be done already."""
    results: list[Any] = []
    deferred = awaitable if isinstance(awaitable, Deferred) else ensureDeferred(awaitable)
    deferred.addBoth(results.append)
    assert results, "this still waits for something"
    if isinstance(results[0], Failure):
        results[0].raiseException()
    return results[0]


class StageCase(SynchronousTestCase):
    """A test on a stage; it fails when anything logs an error that the test does not flush."""

    queues: Sequence[str] = ("tasks",)
    window = 2000

    def setUp(self) -> None:
        self.stage = Stage(self.queues, self.window).know()
        self.addCleanup(self.stage.close)

    def assertRefused(self, reply: dict[str, Any], code: str, field: str | None = None) -> None:
        """The reply is an error with this code and field, and says something."""
        self.assertEqual((reply["ok"], reply.get("code"), reply.get("field")), (False, code, field), reply)
        self.assertGreater(len(reply["message"]), 10)
