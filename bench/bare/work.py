"""Consumes, claims and finishes tasks, in place of the worker."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from pika import spec
from pika.frame import Method

from bench.bare.connections import Amqp, Database, EventExchange, called, declare
from bench.bare.job import Gather, Job

GATHER_SECONDS = 0.02
PREFETCH = 1000
RESULT = '{\\"seconds\\":0}'


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
    """Consumes, claims, finishes and acks tasks. It does not run them."""

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
        self._events: EventExchange

    async def start(self) -> None:
        """Connect and start to consume."""
        job = self._job
        await self._database.open(job)
        # only a registered worker may claim
        await self._database.call("register", "floor", "[]", "[]", "{}")
        consuming, publishing = Amqp(job), Amqp(job)
        await consuming.open(job)
        await publishing.open(job)
        self._events = EventExchange(await publishing.channel())
        await self._events.open()
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
        limits = "{" + ",".join(["3"] * len(batch)) + "}"
        rows = await self._database.call("claim", "floor", ids, dispatches, limits)
        self._events.publish("claimed", len(rows.rows))
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
        self._events.publish("finished", len(rows.rows))
        self._ack([held.tag for held in batch])

    def _ack(self, tags: list[int]) -> None:
        # One frame acks all deliveries below the lowest that is still held: batches end nearly in order.
        self._done.update(tags)
        before = self._acked
        while self._acked + 1 in self._done:
            self._acked += 1
            self._done.remove(self._acked)
        if self._acked > before:
            self._write(Method(self._channel, spec.Basic.Ack(self._acked, multiple=True)).marshal())
