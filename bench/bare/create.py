"""Creates and publishes tasks, in place of the server."""

from __future__ import annotations

import json
import signal
import time
import uuid
from typing import Any

from msgspec.structs import replace
from twisted.internet.defer import Deferred

from bench.bare.connections import Amqp, Database, EventExchange, Publisher, declare
from bench.bare.job import Job, reactor, run
from taskd.model.states import State
from taskd.model.tasks import DEFAULT_KIND, NewTask
from taskd.store.postgres.arrays import ids
from taskd.store.postgres.store import PostgresStore

WINDOW = 2000
CREATING = 2
"""Batches of new tasks that are created at a time, as in taskd."""

_BATCH, _PUBLISHED = str(uuid.UUID(int=1)), str(uuid.UUID(int=2))


class Creator:
    """Creates and publishes tasks, dispatches those of the backlog, and gets the events of finished ones."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._database = Database()
        self._left = job.tasks
        self._confirmed = 0
        self._waiting_share = 0.0
        self._waiting = 0
        self._outstanding = 0
        self._dispatching = False
        self._published: list[str] = []
        self._completed: Deferred[None] = Deferred()
        self._publisher: Publisher
        self._events: EventExchange
        sizes = {job.create, job.tasks % job.create}
        self._arguments = {(n, waits): _create_arguments(n, job, waits) for n in sizes for waits in (False, True)}

    async def start(self) -> None:
        """Connect. Creating begins at SIGUSR1."""
        job = self._job
        await self._database.open(job)
        publishing, subscribing = Amqp(job), Amqp(job)
        await publishing.open(job)
        await subscribing.open(job)
        channel = await publishing.channel()
        await declare(channel, job)
        self._publisher = Publisher(publishing, channel, job.queue, self._published.append)
        await self._publisher.open()
        self._events = EventExchange(await publishing.channel())
        await self._events.open()
        await self._events.subscribe(subscribing, self._on_events)
        signal.signal(signal.SIGUSR1, lambda *_: reactor.callFromThread(self._begin))
        print("ready", flush=True)

    def _begin(self) -> None:
        if self._job.sequential:
            run(self._one_at_a_time())
        else:
            for _ in range(CREATING):
                run(self._create_all())

    async def _create_all(self) -> None:
        while self._left:
            size = min(self._job.create, self._left)
            self._left -= size
            self._waiting_share += self._job.backlog
            waits = self._waiting_share >= 1
            self._waiting_share -= waits
            await self._create(size, waits)
            self._confirmed += size
        if self._confirmed == self._job.tasks:
            self._confirmed = -1
            print(json.dumps({"confirmed_at": time.monotonic()}), flush=True)

    async def _create(self, size: int, waits: bool) -> None:
        batch = str(uuid.uuid4())
        settled = list(self._published)
        self._published.clear()
        given = {_BATCH: batch, ids([_PUBLISHED]): ids(settled)}
        arguments = [given.get(argument, argument) for argument in self._arguments[size, waits]]
        rows = await self._database.call("create_tasks", *arguments)
        self._events.publish("created", size)
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
            self._events.publish("dispatched", len(moved))
            self._publish(batch, moved)
        self._dispatching = False
        self._dispatch_soon()

    def _on_events(self, what: str, tasks: int) -> None:
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


class _Captured(Exception):
    """The arguments of a statement that the store would have executed."""


class _CapturingPool:
    """A connection pool that lends itself as a connection, whose calls execute nothing but raise their arguments."""

    async def acquire(self) -> Any:
        """The connection."""
        return self

    def release_failed(self, connection: object, error: BaseException) -> None:
        """Ignore the error: the store raises it again."""

    async def call(self, name: str, *args: object) -> list[Any]:
        """Raise the arguments as _Captured."""
        raise _Captured(*args)


def _create_arguments(size: int, job: Job, waits: bool) -> list[Any]:
    """The arguments of ``create_tasks`` for a batch, with _BATCH and _PUBLISHED as placeholders.

    The store itself makes them, so that they follow every change of the statement. They are made once, as the time for
    it is not part of the floor.
    """
    spec = NewTask(1, "t", payload='{"seconds":0}', queue=job.queue)
    rows = [
        replace(spec, user_id=1 + n % job.users, state=State.WAITING if waits else State.QUEUED) for n in range(size)
    ]
    store = PostgresStore({}, reactor)
    store._pool = _CapturingPool()  # type: ignore[assignment]
    try:
        store.create_tasks(_BATCH, rows, [_PUBLISHED]).send(None)
    except _Captured as captured:
        return list(captured.args)
    raise RuntimeError("the store did not execute a statement at once")
