"""The two bare processes of the floor: ``python -m bench.bare create|work JOB`` with a JSON file of settings.

Same libraries and statements as taskd, same messages, and nothing else: no protocol, no accounts, no checks, no
recovery. Never use this for anything but measuring.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable
from operator import itemgetter
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import pika
from msgspec.structs import replace
from pika import spec
from pika.adapters.twisted_connection import TwistedProtocolConnection
from pika.frame import Method
from psycopg2 import extensions
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred, DeferredQueue
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from txpostgres import txpostgres

from taskd.broker.rabbitmq.frames import MAX_FRAME, FrameReader, Handler, PublishFrames
from taskd.model.states import State
from taskd.model.tasks import DEFAULT_KIND, NewTask
from taskd.store.postgres.arrays import array
from taskd.store.postgres.connection import SESSION
from taskd.store.postgres.store import PREPARED, PostgresStore

reactor: Any = installed_reactor
T = TypeVar("T")

NEWS_BYTES = 350
"""What the news of one changed task take, about."""

WINDOW = 2000
CONNECTIONS = 4
CREATING = 2
"""Batches of new tasks under way at a time, as in taskd."""

GATHER_SECONDS = 0.02
PREFETCH = 1000
RESULT = '{\\"seconds\\":0}'
_BATCH, _SETTLED = str(uuid.UUID(int=1)), str(uuid.UUID(int=2))
FANOUT = "floor-news"

_PLAIN = extensions.new_type((114, 1184), "PLAIN", extensions.UNICODE)


class Job:
    """What the two processes are told; see :mod:`bench.floor`."""

    def __init__(self, path: str) -> None:
        told = json.loads(Path(path).read_text())
        self.dsn: dict[str, Any] = told["dsn"]
        self.amqp: dict[str, Any] = told["amqp"]
        self.queue: str = told["queue"]
        self.tasks: int = told["tasks"]
        self.users: int = told["users"]
        self.sequential: bool = told["sequential"]
        self.create = max(1, round(told["create"]))
        self.dispatch = max(1, round(told["dispatch"]))
        self.claim = max(1, round(told["claim"]))
        self.finish = max(1, round(told["finish"]))
        self.backlog: float = told["backlog"]


# -- the libraries, as bare as they can be used


class Database:
    """Connections with taskd's statements prepared."""

    def __init__(self) -> None:
        self._idle: DeferredQueue[Any] = DeferredQueue()

    async def open(self, job: Job) -> None:
        """Connect."""
        options = " ".join(f"-c {name}={value}" for name, value in SESSION.items())
        for _ in range(CONNECTIONS):
            connection = txpostgres.Connection(reactor)
            await connection.connect(options=options, client_encoding="UTF8", **job.dsn)
            extensions.register_type(_PLAIN, connection.pollable())
            await connection.cursor().execute(";".join(f"PREPARE {n} AS {text}" for n, text in PREPARED.items()))
            self._idle.put(connection)

    async def call(self, name: str, *args: object) -> Rows:
        """Execute a prepared statement in a transaction of its own."""
        connection = await self._idle.get()
        values = ", ".join(["%s"] * len(args))
        cursor = await connection.cursor().execute(f"EXECUTE {name} ({values})", args)
        rows = Rows([column.name for column in cursor.description], cursor.fetchall())
        self._idle.put(connection)
        return rows


class Rows(NamedTuple):
    """The answer to a statement. Columns are found by their names, as statements may give more than is needed here."""

    names: list[str]
    rows: list[tuple[Any, ...]]

    def columns(self, *wanted: str) -> list[Any]:
        """Tuples of these columns."""
        return list(map(itemgetter(*[self.names.index(name) for name in wanted]), self.rows))


class Amqp(TwistedProtocolConnection):
    """A connection whose hot frames go round pika, as taskd's do: pika alone takes several times as long for them."""

    def __init__(self, job: Job) -> None:
        credentials = pika.PlainCredentials(job.amqp["user"], job.amqp["password"])
        super().__init__(pika.ConnectionParameters(credentials=credentials, frame_max=MAX_FRAME))
        self._reader = FrameReader(super().dataReceived)

    async def open(self, job: Job) -> None:
        """Connect."""
        await connectProtocol(TCP4ClientEndpoint(reactor, job.amqp["host"], job.amqp["port"]), self)
        await self.ready

    def dataReceived(self, data: bytes) -> None:
        """Deliveries to their handler, all else to pika."""
        self._impl.bytes_received += 1
        self._reader.feed(data)

    async def channel(self) -> Any:
        """A plain channel of pika's."""
        opened: Deferred[Any] = Deferred()
        self._impl.channel(on_open_callback=opened.callback)
        return await opened

    async def consume(self, channel: Any, queue: str, handler: Handler, auto_ack: bool = False) -> None:
        """Have messages delivered."""

        def deliver(_: Any, method: Any, properties: Any, body: bytes) -> None:
            handler(method.delivery_tag, method.redelivered, body)

        self._reader.handlers[channel.channel_number] = handler
        await called(channel.basic_consume, queue=queue, on_message_callback=deliver, auto_ack=auto_ack)


def called(method: Callable[..., Any], **arguments: Any) -> Deferred[Any]:
    """Call a method of a plain channel; fires with the reply."""
    done: Deferred[Any] = Deferred()
    method(callback=done.callback, **arguments)
    return done


class Publisher:
    """Persistent messages with confirms. ``confirmed`` gets the batches whose messages all are."""

    def __init__(self, amqp: Amqp, channel: Any, queue: str, confirmed: Callable[[str], None]) -> None:
        self._amqp = amqp
        self._channel = channel
        self._frames = PublishFrames(channel.channel_number, queue)
        self._confirmed = confirmed
        self._published = 0
        self._low = 0
        self._early: set[int] = set()
        self._open: deque[tuple[int, str]] = deque()

    async def open(self) -> None:
        """Turn confirms on."""
        await called(self._channel.confirm_delivery, ack_nack_callback=self._on_confirm)

    def publish(self, batch: str, messages: list[tuple[int, int]]) -> None:
        """Send messages."""
        self._published += len(messages)
        self._open.append((self._published, batch))
        self._amqp.transport.write(self._frames.encode([b"%d %d" % message for message in messages]))

    def _on_confirm(self, frame: Any) -> None:
        tag = frame.method.delivery_tag
        if frame.method.multiple:
            self._low = max(self._low, tag)
        else:
            self._early.add(tag)
        while self._low + 1 in self._early:
            self._low += 1
            self._early.remove(self._low)
        while self._open and self._open[0][0] <= self._low:
            self._confirmed(self._open.popleft()[1])


class News:
    """The fan-out of changes: one transient message a batch, as many bytes as taskd's."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel

    async def open(self) -> None:
        """Declare the exchange."""
        await called(self._channel.exchange_declare, exchange=FANOUT, exchange_type="fanout")

    def tell(self, what: str, tasks: int) -> None:
        """Publish the news of a batch."""
        self._channel.basic_publish(FANOUT, "", f"{what} {tasks} ".encode() + b"." * (NEWS_BYTES * tasks))

    async def hear(self, amqp: Amqp, heard: Callable[[str, int], None]) -> None:
        """Get all news, of any process."""
        channel = await amqp.channel()
        declared = await called(channel.queue_declare, queue="", exclusive=True, auto_delete=True)
        name = declared.method.queue
        await called(channel.queue_bind, queue=name, exchange=FANOUT)

        def take(tag: int, redelivered: bool, body: bytes) -> None:
            what, tasks, _ = body.split(b" ", 2)
            heard(what.decode(), int(tasks))

        await amqp.consume(channel, name, take, auto_ack=True)


class Gather(Generic[T]):
    """Batches of one size; a smaller one when no more come for a moment."""

    def __init__(self, size: int, seconds: float, flush: Callable[[list[T]], Awaitable[None]]) -> None:
        self._size = size
        self._seconds = seconds
        self._flush = flush
        self._items: list[T] = []
        self._timer: Any = None

    def add(self, item: T) -> None:
        """One more."""
        self._items.append(item)
        if len(self._items) >= self._size:
            self._go()
        elif self._timer is None:
            self._timer = reactor.callLater(self._seconds, self._late)

    def _late(self) -> None:
        self._timer = None
        if self._items:
            self._go()

    def _go(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        items, self._items = self._items, []
        run(self._flush(items))


# -- instead of the server


class Creator:
    """Creates and publishes; moves the share of the backlog; hears the news."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._database = Database()
        self._left = job.tasks
        self._confirmed = 0
        self._turn_to_wait = 0.0
        self._waiting = 0
        self._outstanding = 0
        self._dispatching = False
        self._settled: list[str] = []
        self._completed: Deferred[None] = Deferred()
        self._publisher: Publisher
        self._news: News
        sizes = {job.create, job.tasks % job.create}
        self._arguments = {(n, waits): _create_arguments(n, job, waits) for n in sizes for waits in (False, True)}

    async def start(self) -> None:
        """Connect, and wait for SIGUSR1."""
        job = self._job
        await self._database.open(job)
        publishing, hearing = Amqp(job), Amqp(job)
        await publishing.open(job)
        await hearing.open(job)
        channel = await publishing.channel()
        await declare(channel, job)
        self._publisher = Publisher(publishing, channel, job.queue, self._settled.append)
        await self._publisher.open()
        self._news = News(await publishing.channel())
        await self._news.open()
        await self._news.hear(hearing, self._heard)
        signal.signal(signal.SIGUSR1, lambda *_: reactor.callFromThread(self._go))
        print("ready", flush=True)

    def _go(self) -> None:
        if self._job.sequential:
            run(self._one_at_a_time())
        else:
            for _ in range(CREATING):
                run(self._create_all())

    async def _create_all(self) -> None:
        while self._left:
            size = min(self._job.create, self._left)
            self._left -= size
            self._turn_to_wait += self._job.backlog
            waits = self._turn_to_wait >= 1
            self._turn_to_wait -= waits
            await self._create(size, waits)
            self._confirmed += size
        if self._confirmed == self._job.tasks:
            self._confirmed = -1
            print(json.dumps({"confirmed_at": time.monotonic()}), flush=True)

    async def _create(self, size: int, waits: bool) -> None:
        batch = str(uuid.uuid4())
        settled = list(self._settled)
        self._settled.clear()
        given = {_BATCH: batch, array([_SETTLED]): array(settled)}
        arguments = [given.get(argument, argument) for argument in self._arguments[size, waits]]
        rows = await self._database.call("create_tasks", *arguments)
        self._news.tell("created", size)
        if waits:
            self._waiting += size
            self._dispatch_soon()
        else:
            self._publish(batch, [(task_id, 1) for task_id in rows.columns("task_ids")[0]])

    def _publish(self, batch: str, messages: list[tuple[int, int]]) -> None:
        self._outstanding += len(messages)
        self._publisher.publish(batch, messages)

    def _dispatch_soon(self) -> None:
        if self._waiting and not self._dispatching and WINDOW - self._outstanding >= self._job.dispatch:
            self._dispatching = True
            run(self._dispatch())

    async def _dispatch(self) -> None:
        batch = str(uuid.uuid4())
        rows = await self._database.call("dispatch", batch, self._job.queue, DEFAULT_KIND, self._job.dispatch, 0, False)
        moved = [message for message in rows.columns("id", "dispatch") if message[0] is not None]
        if moved:
            self._waiting -= len(moved)
            self._news.tell("dispatched", len(moved))
            self._publish(batch, moved)
        self._dispatching = False
        self._dispatch_soon()

    def _heard(self, what: str, tasks: int) -> None:
        if what != "finished":
            return
        self._outstanding -= tasks
        if self._job.sequential:
            done, self._completed = self._completed, Deferred()
            done.callback(None)
        else:
            self._dispatch_soon()

    async def _one_at_a_time(self) -> None:
        confirmed, completed = [], []
        for _ in range(self._job.tasks):
            start, done = time.perf_counter(), self._completed
            await self._create(1, waits=False)
            confirmed.append(time.perf_counter() - start)
            await done
            completed.append(time.perf_counter() - start)
        print(json.dumps({"confirmed": confirmed, "completed": completed}), flush=True)


class _Asked(Exception):
    """What the store would have sent."""


class _NoPool:
    """Lends itself to the store as a connection that raises the arguments of the first statement."""

    async def acquire(self) -> Any:
        """The connection."""
        return self

    def release_failed(self, connection: object, error: BaseException) -> None:
        """Ignore the error: the store raises it again."""

    async def call(self, name: str, *args: object) -> list[Any]:
        """Raises _Asked."""
        raise _Asked(*args)


def _create_arguments(size: int, job: Job, waits: bool) -> list[Any]:
    """The arguments of ``create_tasks`` for a batch, with _BATCH and _SETTLED to be replaced.

    They come from the store itself, so that this follows every change of the statement; and they are made once, as what
    it takes to make them is no part of the floor.
    """
    spec = NewTask(1, "t", payload='{"seconds":0}', queue=job.queue)
    rows = [
        replace(spec, user_id=1 + n % job.users, state=State.WAITING if waits else State.QUEUED) for n in range(size)
    ]
    store = PostgresStore({}, reactor)
    store._pool = _NoPool()  # type: ignore[assignment]
    try:
        store.create_tasks(_BATCH, rows, [_SETTLED]).send(None)
    except _Asked as asked:
        return list(asked.args)
    raise RuntimeError("the store did not ask for a statement at once")


# -- instead of the worker


class Message(NamedTuple):
    """A delivery."""

    task_id: int
    dispatch: int
    tag: int


class Held(NamedTuple):
    """A claimed task."""

    task_id: int
    dispatch: int
    attempt: int
    tag: int


class Worker:
    """Consumes, claims, finishes at once, acks."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._database = Database()
        wait = 0 if job.sequential else GATHER_SECONDS
        self._claims: Gather[Message] = Gather(job.claim, wait, self._claim)
        self._finishes: Gather[Held] = Gather(job.finish, wait, self._finish)
        self._write: Callable[[bytes], None]
        self._channel = 0
        self._acked = 0
        self._done: set[int] = set()
        self._news: News

    async def start(self) -> None:
        """Connect and consume."""
        job = self._job
        await self._database.open(job)
        consuming, publishing = Amqp(job), Amqp(job)
        await consuming.open(job)
        await publishing.open(job)
        self._news = News(await publishing.channel())
        await self._news.open()
        channel = await consuming.channel()
        await declare(channel, job)
        await called(channel.basic_qos, prefetch_count=PREFETCH)
        self._write, self._channel = consuming.transport.write, channel.channel_number
        await consuming.consume(channel, job.queue, self._take)
        print("ready", flush=True)

    def _take(self, tag: int, redelivered: bool, body: bytes) -> None:
        task_id, dispatch = body.split()
        self._claims.add(Message(int(task_id), int(dispatch), tag))

    async def _claim(self, batch: list[Message]) -> None:
        batch.sort()
        ids = "{" + ",".join([str(m.task_id) for m in batch]) + "}"
        dispatches = "{" + ",".join([str(m.dispatch) for m in batch]) + "}"
        flags = "{" + ",".join("f" * len(batch)) + "}"
        limits = "{" + ",".join(["3"] * len(batch)) + "}"
        rows = await self._database.call("claim", "floor", 30.0, ids, dispatches, flags, flags, limits)
        self._news.tell("claimed", len(rows.rows))
        tags = {m.task_id: m.tag for m in batch}
        for task_id, dispatch, attempt in rows.columns("id", "dispatch", "attempt"):
            self._finishes.add(Held(task_id, dispatch, attempt, tags[task_id]))

    async def _finish(self, batch: list[Held]) -> None:
        batch.sort()
        size = len(batch)
        rows = await self._database.call(
            "complete",
            "floor",
            "{" + ",".join([str(h.task_id) for h in batch]) + "}",
            "{" + ",".join([str(h.dispatch) for h in batch]) + "}",
            "{" + ",".join([str(h.attempt) for h in batch]) + "}",
            "{" + ",".join([f'"{RESULT}"'] * size) + "}",
        )
        self._news.tell("finished", len(rows.rows))
        self._ack([held.tag for held in batch])

    def _ack(self, tags: list[int]) -> None:
        # All below the lowest that is still held by one frame, as batches end nearly in order.
        self._done.update(tags)
        before = self._acked
        while self._acked + 1 in self._done:
            self._acked += 1
            self._done.remove(self._acked)
        if self._acked > before:
            self._write(Method(self._channel, spec.Basic.Ack(self._acked, multiple=True)).marshal())


# -- what both do


async def declare(channel: Any, job: Job) -> None:
    """The work queue, as taskd declares it."""
    arguments = {"x-queue-type": "quorum"}
    await called(channel.queue_declare, queue=job.queue, durable=True, arguments=arguments)


def run(coroutine: Awaitable[None]) -> None:
    """Start it; its failure ends the process."""
    Deferred.fromCoroutine(coroutine).addErrback(fail)  # type: ignore[arg-type]


def fail(failure: Any) -> None:
    """End the process with status 1."""
    print(failure.getTraceback(), flush=True)
    # Not sys.exit: a Deferred would keep the SystemExit to itself.
    os._exit(1)


def main() -> None:
    """See above."""
    logging.disable()
    job = Job(sys.argv[2])
    role = Creator(job) if sys.argv[1] == "create" else Worker(job)
    reactor.callWhenRunning(lambda: run(role.start()))
    reactor.run()


if __name__ == "__main__":
    main()
