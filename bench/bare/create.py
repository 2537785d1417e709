"""Creates tasks that are assigned to the bare worker, in place of the server."""

from __future__ import annotations

import json
import signal
import time
from typing import Any

from msgspec.structs import replace
from twisted.internet.defer import Deferred

from bench.bare.connections import Amqp, Database, EventExchange, Hints
from bench.bare.job import WORKER, Job, reactor, run
from taskd.model.tasks import NewTask
from taskd.store.postgres.arrays import array
from taskd.store.postgres.store import PostgresStore

IN_FLIGHT = 2000
"""Tasks that are created and not finished, at most."""

CREATING = 2
"""Batches of new tasks that are created at a time, as in taskd."""

_IDS = array([-1])


class Creator:
    """Creates tasks, hints the worker, and gets the events of finished ones."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._database = Database()
        self._left = job.tasks
        self._confirmed = 0
        self._in_flight = 0
        self._ids: list[int] = []
        self._room: list[Deferred[None]] = []
        self._completed: Deferred[None] = Deferred()
        self._hints: Hints
        self._events: EventExchange
        self._arguments = {n: _create_arguments(n, job) for n in {job.create, job.tasks % job.create}}

    async def start(self) -> None:
        """Connect. Creating begins at SIGUSR1."""
        job = self._job
        await self._database.open(job)
        sending, receiving = Amqp(job), Amqp(job)
        await sending.open(job)
        await receiving.open(job)
        self._hints = Hints(sending, await sending.channel())
        self._events = EventExchange(await sending.channel())
        await self._events.open()
        await self._events.subscribe(receiving, self._on_events)
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
            while self._in_flight + size > max(IN_FLIGHT, size):
                room: Deferred[None] = Deferred()
                self._room.append(room)
                await room
            await self._create(size)
            self._confirmed += size
        if self._confirmed == self._job.tasks:
            self._confirmed = -1
            print(json.dumps({"confirmed_at": time.monotonic()}), flush=True)

    async def _create(self, size: int) -> None:
        self._in_flight += size
        while len(self._ids) < size:
            rows = await self._database.call("draw_ids", 2 * size)
            self._ids += rows.rows[0][0]
        ids, self._ids = self._ids[:size], self._ids[size:]
        given = {_IDS: array(ids)}
        rows = await self._database.call("create_tasks", *(given.get(a, a) for a in self._arguments[size]), size)
        # the third column has the fresh ids
        self._ids += rows.rows[0][2] or ()
        self._events.publish("created", size)
        self._hints.send()

    def _on_events(self, what: str, tasks: int) -> None:
        if what != "finished":
            return
        self._in_flight -= tasks
        rooms, self._room = self._room, []
        for room in rooms:
            room.callback(None)
        if self._job.sequential:
            done, self._completed = self._completed, Deferred()
            done.callback(None)

    async def _one_at_a_time(self) -> None:
        confirmed, completed = [], []
        for _ in range(self._job.tasks):
            start, done = time.perf_counter(), self._completed
            await self._create(1)
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


def _create_arguments(size: int, job: Job) -> list[Any]:
    """The arguments of ``create_tasks`` for a batch: no number of fresh ids, and _IDS in place of the ids.

    The store itself makes them, so that they follow every change of the statement. They are made once, as the time for
    it is not part of the floor.
    """
    spec = NewTask(1, "t", payload='{"seconds":0}', queue=job.queue, id=-1, worker=WORKER)
    rows = [replace(spec, user_id=1 + n % job.users) for n in range(size)]
    store = PostgresStore({}, reactor)
    store._pool = _CapturingPool()  # type: ignore[assignment]
    try:
        store.create_tasks(rows).send(None)
    except _Captured as captured:
        _, *rest, _ = captured.args
        return [_IDS, *rest]
    raise RuntimeError("the store did not execute a statement at once")
