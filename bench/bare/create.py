"""Creates and publishes tasks, in place of the server."""

from __future__ import annotations

import json
import signal
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from msgspec.structs import replace
from twisted.internet.defer import Deferred

from bench.bare.connections import Amqp, Database, News, Publisher, declare
from bench.bare.job import Job, reactor, run
from taskd.model.states import State
from taskd.model.tasks import DEFAULT_KIND, NewTask
from taskd.store.postgres.arrays import ids
from taskd.store.postgres.store import PostgresStore

WINDOW = 2000
CREATING = 2
"""Batches of new tasks under way at a time, as in taskd."""

_BATCH, _SETTLED = str(uuid.UUID(int=1)), str(uuid.UUID(int=2))


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
        given = {_BATCH: batch, ids([_SETTLED]): ids(settled)}
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
    """Gives the store, instead of connections, one that refuses every statement by telling its arguments."""

    async def run(self, work: Callable[[Any], Awaitable[Any]]) -> Any:
        """Do the work without a connection."""
        return await work(self)

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
