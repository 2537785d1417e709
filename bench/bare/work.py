"""Looks for tasks and finishes them, in place of the worker."""

from __future__ import annotations

from typing import NamedTuple

from bench.bare.connections import Amqp, Database, EventExchange, Hints
from bench.bare.job import WORKER, Gather, Job, run

GATHER_SECONDS = 0.02
RESULT = '{\\"seconds\\":0}'


class Held(NamedTuple):
    """A task that was found."""

    task_id: int
    dispatch: int
    attempt: int


class Worker:
    """Looks when it gets a hint, and finishes what it finds. It does not run anything."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._database = Database()
        self._known: set[int] = set()
        self._looking = self._again = False
        self._finishes: Gather[Held] = Gather(job.finish, 0 if job.sequential else GATHER_SECONDS, self._finish)
        self._events: EventExchange

    async def start(self) -> None:
        """Connect and wait for hints."""
        job = self._job
        await self._database.open(job)
        # only a registered worker gets tasks
        await self._database.call("register", WORKER, "[]", "[]", "{}")
        for n in range(job.users):
            await self._database.call("create_user", f"user{n}", f"user{n}", "")
        receiving, sending = Amqp(job), Amqp(job)
        await receiving.open(job)
        await sending.open(job)
        self._events = EventExchange(await sending.channel())
        await self._events.open()
        await Hints(receiving, await receiving.channel()).receive(self._hinted)
        print("ready", flush=True)

    def _hinted(self) -> None:
        self._again = True
        if not self._looking:
            self._looking = True
            run(self._look())

    async def _look(self) -> None:
        while self._again:
            self._again = False
            known = "{" + ",".join(map(str, self._known)) + "}"
            rows = await self._database.call("look", WORKER, known)
            for held in rows.columns("id", "dispatch", "attempt"):
                # an answer may be older than an end
                self._known.add(held[0])
                self._finishes.add(Held(*held))
        self._looking = False

    async def _finish(self, batch: list[Held]) -> None:
        batch.sort()
        size = len(batch)
        rows = await self._database.call(
            "complete",
            WORKER,
            "{" + ",".join([str(h.task_id) for h in batch]) + "}",
            "{" + ",".join([str(h.dispatch) for h in batch]) + "}",
            "{" + ",".join([str(h.attempt) for h in batch]) + "}",
            "{" + ",".join(["0"] * size) + "}",
            "{" + ",".join([f'"{RESULT}"'] * size) + "}",
        )
        self._known.difference_update([held.task_id for held in batch])
        self._events.publish("finished", len(rows.rows))
